"""A notice as JSON, posted to an address."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cvm_batch.errors import UsageError
from cvm_batch.notices.message import Message
from cvm_batch.notices.sending import UndeliveredError

_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = 500


class Webhook:
    """One address. It may hold a secret, and is told to nobody but its server."""

    kind = "webhook"

    def __init__(self, url: str) -> None:
        """Raises UsageError."""
        self._url = url
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        plain = url.isascii() and url.isprintable() and " " not in url
        if not (host and plain and parts.scheme in ("http", "https")) or "@" in parts.netloc:
            raise UsageError(
                "The address of --notify-webhook must begin with https:// or http:// and name a "
                "host, without a user or password before it. It is not shown here, since it may "
                "hold a secret."
            )
        self.to = f"{parts.scheme}://{host}" + (f":{port}" if port else "")

    def deliver(self, message: Message, timeout: float) -> None:
        request = Request(  # noqa: S310 - http and https only, checked above
            self._url,
            data=json.dumps(message.to_json(), allow_nan=False).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "cvm-batch"},
            method="POST",
        )
        try:
            with build_opener(_NoRedirect).open(request, timeout=timeout):
                pass
        except HTTPError as error:
            error.close()
            passing = error.code == _TOO_MANY_REQUESTS or error.code >= _SERVER_ERRORS
            raise UndeliveredError(f"it answered {error.code}", passing=passing) from None
        except URLError as error:
            why = error.reason
            told = (isinstance(why, OSError) and why.strerror) or type(why).__name__
            raise UndeliveredError(told, passing=True) from None
        except HTTPException as error:
            raise UndeliveredError(
                f"its answer is no HTTP: {type(error).__name__}", passing=True
            ) from None


class _NoRedirect(HTTPRedirectHandler):
    """An address elsewhere is not the one that was trusted with the message."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
