"""Addresses on object storage and web servers: which there are, and that they hold no secret."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from cvm_batch.errors import UsageError


class _Client(NamedTuple):
    package: str
    """What fsspec needs."""
    extra: str
    """Of ours, which brings it."""


_CLIENTS = {
    "s3": _Client("s3fs", "s3"),
    "gs": _Client("gcsfs", "gs"),
    "az": _Client("adlfs", "az"),
    "https": _Client("aiohttp", "http"),
    "http": _Client("aiohttp", "http"),
}
WEB = ("https", "http")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

#: A key on object storage may hold a question mark; one before these begins a signature.
_SIGNED = re.compile(r"\?(.*&)?(x-amz-|x-goog-|awsaccesskeyid=|sig=|signature=|token=)", re.I)


def absolute(text: str) -> str:
    """A path from the root on; an address as it is. Raises UsageError."""
    return text if is_remote(text) else str(Path(text).absolute())


def is_remote(text: str) -> bool:
    """Whether ``text`` is an address, not a path. Raises UsageError for schemes unheard of."""
    match = _SCHEME.match(text)
    if match is not None and match[1].lower() not in _CLIENTS:
        raise UsageError(
            f"Addresses of the kind {match[1]}:// cannot be read: known are "
            f"{', '.join(f'{scheme}://' for scheme in _CLIENTS)} and paths."
        )
    return match is not None


def checked_address(uri: str) -> str:
    """The address, its scheme in lower case, without a slash at its end.

    Raises UsageError where it names no bucket or host or holds a secret, and where the client
    for it is not installed.
    """
    scheme = scheme_of(uri)
    host, key = host_and_key(uri)
    bare = _without_secrets(scheme, host, key)
    if bare != f"{scheme}://{host}/{key}":
        raise UsageError(
            f"{bare.rstrip('/')} was given with a user name, a password, a signature or a query. "
            "Addresses stand in logs and results: give it without, and the credentials in the "
            "environment. In names on a web server write ? as %3F and # as %23."
        )
    if not host.strip("/"):
        raise UsageError(f"{uri} names no bucket or host. Write {scheme}://bucket/name.")
    client = _CLIENTS[scheme]
    if find_spec(client.package) is None:
        raise UsageError(
            f"{uri} cannot be reached: {scheme}:// needs a package that is not installed. Run: "
            f"pip install 'cvm-batch[{client.extra}]'"
        )
    return bare.rstrip("/")


def scheme_of(uri: str) -> str:
    return uri.partition("://")[0].lower()


def host_and_key(uri: str) -> tuple[str, str]:
    """Bucket, container or host, and what comes behind it."""
    host, _, key = uri.partition("://")[2].partition("/")
    return host, key


def _without_secrets(scheme: str, host: str, key: str) -> str:
    """The address without user, password, signature, query and fragment."""
    end = re.search(r"[?#]", key) if scheme in WEB else _SIGNED.search(key)
    bare_host = re.split(r"[?#]", host.rpartition("@")[2])[0]
    return f"{scheme}://{bare_host}/{key[: end.start()] if end else key}"
