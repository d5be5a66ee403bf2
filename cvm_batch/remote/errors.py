"""What the clients of object storage and web servers raise, told apart.

They need not be installed, so that their errors are known by status and by name alone.
"""

from __future__ import annotations

from collections.abc import Iterator

#: By name, of aiohttp, asyncio, botocore, requests, azure.core and google.auth: the
#: connection failed or ended before the answer did.
_PASSING = frozenset(
    (
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
        "ResponseStreamingError",
        "ServiceRequestError",
        "ServiceResponseError",
        "TimeoutError",
        "TransportError",
    )
)
#: 409: another request for the same object was under way.
_PASSING_STATUS = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
#: Missing, refused or refuted credentials of AWS and Google that come without a status.
_UNKNOWN_USER = frozenset(
    ("CredentialRetrievalError", "DefaultCredentialsError", "NoCredentialsError", "RefreshError")
)


def may_pass(error: Exception) -> bool:
    """Whether the same request can succeed a little later."""
    return _is_of(error, _PASSING) or status_of(error) in _PASSING_STATUS


def is_missing(error: Exception) -> bool:
    """Whether the server says that there is nothing at the address."""
    return isinstance(error, FileNotFoundError) or status_of(error) in (404, 410)


def is_denied(error: Exception) -> bool:
    """Whether the server refuses this user."""
    return (
        status_of(error) in (401, 403, 407)
        or isinstance(error, PermissionError)
        # gcsfs keeps of this status only the word.
        or str(error).startswith("Forbidden")
        or _is_of(error, _UNKNOWN_USER)
    )


def told(error: Exception) -> str:
    """The cause in a few words, none of them the client's own, which may quote credentials."""
    status = status_of(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"HTTP status {status}" if status is not None else type(error).__name__


def status_of(error: Exception) -> int | None:
    """The HTTP status of an answer that came whole, under its client's name for it."""
    if _is_of(error, _PASSING):  # aiohttp gives those that broke off one that nobody sent
        return None
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp, azure.core, gcsfs
            names = ("status", "status_code", "code")
            status = next((getattr(link, name) for name in names if hasattr(link, name)), None)
        if isinstance(status, int | str) and str(status).isdecimal():
            return int(status)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was made of: s3fs puts errors of Python before botocore's."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_of(error: Exception, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
