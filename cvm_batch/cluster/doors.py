"""Whether a cluster's door is shut: who reaches a Ray cluster's ports can run code on it."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from cvm_batch.errors import ClusterError, ClusterUnreachableError, OpenClusterError

_JOBS = "/api/jobs/"
_SHUT = (301, 302, 303, 307, 308, 401, 403)
_OPEN_ANYWAY = "--allow-open-cluster submits all the same."
_TIMEOUT_SECONDS = 10.0
_GLANCE_SECONDS = 1.0

#: The HTTP status that an address answers with.
Knock = Callable[[str], int]


def is_jobs_address(address: str | None) -> bool:
    """Whether the address is a dashboard's, for the Jobs API; else a driver connects to it."""
    return address is not None and address.startswith(("http://", "https://"))


def check_dashboard(
    address: str,
    *,
    ca_file: Path | None = None,
    knock: Knock | None = None,
    own_addresses: Callable[[], Iterable[str]] | None = None,
) -> None:
    """Make sure that the dashboard asks for a token, and is not open to all.

    ``knock`` and ``own_addresses`` (this machine's, beyond loopback) are there for tests. Raises
    OpenClusterError, ClusterUnreachableError where nobody answers, ClusterError where somebody
    else than Ray does.
    """
    parts = urlsplit(address)
    if parts.username or parts.password or parts.query or not parts.hostname:
        raise ClusterError(
            "--address takes http(s)://HOST:PORT alone; the token comes from the environment, "
            "since addresses stand in logs and lists of processes."
        )
    loopback = _is_loopback(parts.hostname)
    if parts.scheme == "http" and not loopback:
        raise OpenClusterError(
            f"{address} is reached without TLS: whoever listens on the way reads the token. Use "
            f"https:// (docs/operations.md), or a tunnel to localhost. {_OPEN_ANYWAY}"
        )
    status = (knock or _knocker(ca_file))(address.rstrip("/") + _JOBS)
    if status == 200:
        raise OpenClusterError(
            f"The cluster at {address} asks for no token, so anybody who reaches it can run code "
            "on it. Start all its nodes with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH. "
            f"{_OPEN_ANYWAY}"
        )
    if status not in _SHUT:
        raise ClusterError(
            f"{address} answers with HTTP status {status}, as no Ray dashboard does. Check "
            "--address: the dashboard's port is 8265 unless it was given another."
        )
    if loopback:
        others = own_addresses() if own_addresses else _own_addresses()
        _check_bound(address, parts.port or 80, others)


def check_driver_address(address: str) -> None:
    """The same for a cluster that a driver connects to: without a token of ours, it has none."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise OpenClusterError(
            f"No token is used for the cluster at {address} (RAY_AUTH_MODE is not 'token'): if it "
            "lets us in all the same, it lets in anybody. Start its nodes, and this command, with "
            f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH. {_OPEN_ANYWAY}"
        )


def _check_bound(address: str, port: int, others: Iterable[str]) -> None:
    for other in others:
        if _listens(other, port):
            raise OpenClusterError(
                f"The dashboard at {address} also listens on {other}: it is bound to all "
                "addresses. Start the head with --dashboard-host 127.0.0.1, and put a proxy with "
                f"TLS before it for others. {_OPEN_ANYWAY}"
            )


def _knocker(ca_file: Path | None) -> Knock:
    context = ssl.create_default_context(cafile=ca_file)
    # Not followed: a login page elsewhere says that the door is shut.
    opener = urllib.request.build_opener(
        _NoRedirect(), urllib.request.HTTPSHandler(context=context)
    )

    def knock(url: str) -> int:
        try:
            with opener.open(url, timeout=_TIMEOUT_SECONDS) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise ClusterUnreachableError(
                f"No answer from {url}: {why}. Check --address, and that the way there (a tunnel, "
                "a proxy) is open; --ca-file names the certificates of a laboratory's own."
            ) from error

    return knock


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own_addresses() -> set[str]:
    """This machine's addresses beyond loopback, as far as a look without privileges shows."""
    found: set[str] = set()
    for probe in ("192.0.2.1", "2001:db8::1"):  # of documentation: no packet is sent
        family = socket.AF_INET6 if ":" in probe else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as route:
                route.connect((probe, 9))
                found.add(route.getsockname()[0])
        except OSError:
            continue
    return {address for address in found if not _is_loopback(address)}


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=_GLANCE_SECONDS):
            return True
    except OSError:
        return False
