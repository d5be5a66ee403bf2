"""Servers on localhost that remote slides are read from, and that can be told to fail.

`serving_s3` is moto's server, which speaks S3 over HTTP; `serving_files` is a plain web
server with ETags and ranges. Both see real requests of the real clients.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from cvm_batch.archives.places import remote as remote_places
from cvm_batch.remote.asking import Patience

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: Of whom no message may tell.
SECRET = "wJalrXUtnFEMI-the-secret"
#: Enough for servers that answer at once, or never will.
HASTE = Patience(retries=2, first_wait_s=0.02, answer_s=1, last_retry_s=10)


class Fault(Enum):
    """What happens to a request instead of an answer."""

    DROP = auto()
    """The connection ends before the answer."""
    CUT = auto()
    """It ends in the middle of the answer."""
    HANG = auto()
    """Nothing comes, for as long as the server runs."""


@dataclass(frozen=True)
class Seen:
    """A request that was answered or failed."""

    method: str
    path: str
    range: str


def is_read(seen: Seen) -> bool:
    """Whether it asks for content, not for a stamp or a listing."""
    return bool(seen.range)


@dataclass
class _Failure:
    how: Fault | int
    """Or an HTTP status."""
    only: Callable[[Seen], bool]
    times: float


@dataclass
class FaultyServer:
    """An application behind a port of localhost, in a thread."""

    app: App
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    """Bytes of all answers, without headers."""
    _failures: list[_Failure] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail(
        self,
        how: Fault | int,
        *,
        times: float = float("inf"),
        only: Callable[[Seen], bool] = lambda _: True,
    ) -> None:
        """Let the next requests fail, in place of earlier orders."""
        self.mend()
        self._failures.append(_Failure(how, only, times))

    def mend(self) -> None:
        self._failures.clear()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
        seen = Seen(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", ""))
        with self._lock:
            self.seen.append(seen)
            how = self._next_failure(seen)
        if isinstance(how, int):
            yield from Response(_refusal(how), how, mimetype="text/xml")(environ, start)
        elif how is Fault.HANG:
            self._stopping.wait()
            _hang_up(environ)
        elif how is Fault.DROP:
            _hang_up(environ)
        else:
            yield from self._counted(b"".join(self.app(environ, start)), how, environ)

    def _counted(
        self, body: bytes, how: Fault | None, environ: Mapping[str, Any]
    ) -> Iterator[bytes]:
        body = body[: len(body) // 2] if how is Fault.CUT else body
        with self._lock:
            self.sent += len(body)
        yield body
        if how is Fault.CUT:
            _hang_up(environ)

    def _next_failure(self, seen: Seen) -> Fault | int | None:
        for failure in self._failures:
            if failure.times > 0 and failure.only(seen):
                failure.times -= 1
                return failure.how
        return None


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        """The output of tests is for tests."""


def _hang_up(environ: Mapping[str, Any]) -> None:
    with suppress(OSError):  # the client was faster
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _refusal(status: int) -> str:
    code = "SlowDown" if status == 503 else status
    return f"<Error><Code>{code}</Code><Message>Refused.</Message></Error>"


# Object storage


@dataclass
class S3(FaultyServer):
    """A server of object storage, with one bucket."""

    app: App = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))
    bucket: str = "slides"

    def __enter__(self) -> S3:
        super().__enter__()
        self.client = boto3.client("s3", endpoint_url=self.url)
        self.client.create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._empty()
        finally:
            super().__exit__()

    def _empty(self) -> None:
        """moto keeps what it holds in the process, whatever servers there are."""
        self.mend()
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        for page in pages:
            if found := [{"Key": entry["Key"]} for entry in page.get("Contents", ())]:
                self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": found})
        self.client.delete_bucket(Bucket=self.bucket)
        self.client.close()

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, data: bytes) -> str:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        return self.uri(key)

    def put_all(self, path: Path, key: str) -> str:
        """A file, or all of a folder."""
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        for file in files:
            inside = file.relative_to(path).as_posix()
            self.put(key if file == path else f"{key}/{inside}", file.read_bytes())
        return self.uri(key)

    def put_many(self, keys: Iterable[str]) -> None:
        """Objects of one byte each, without requests, which would take seconds."""
        for key in keys:
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(self.bucket, key, b"x")


# Web servers


@dataclass
class Web(FaultyServer):
    """A web server of files in memory, by their paths without the slash before them."""

    app: App = field(init=False)
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    tells_etag: bool = True
    weighs_if_match: bool = True
    serves_ranges: bool = True
    modified: datetime = datetime(2024, 5, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        self.app = self._serve
        super().__post_init__()

    def uri(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        return self._response(Request(environ))(environ, start)

    def _response(self, request: Request) -> Response:
        name = request.path.removeprefix("/")
        if name in self.redirects:
            return Response(status=302, headers={"Location": self.redirects[name]})
        data = self.files.get(name)
        if data is None:
            return Response(status=404)
        response = Response(data, mimetype="application/octet-stream")
        response.last_modified = self.modified
        if self.tells_etag:
            etag = hashlib.sha256(data).hexdigest()[:16]
            response.set_etag(etag)
            if self.weighs_if_match and request.if_match and etag not in request.if_match:
                return Response(status=412)
        if self.serves_ranges:
            response.make_conditional(request, accept_ranges=True, complete_length=len(data))
        return response


@contextmanager
def serving_s3() -> Iterator[S3]:
    """A server of object storage, to which the environment leads."""
    with _environment() as patch, S3(bucket="slides") as server:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        # On a busy machine, setting up the first client outlasts what `HASTE` waits.
        remote_places._store("s3", HASTE, os.getpid()).fs.connect()
        yield server


@contextmanager
def serving_files() -> Iterator[Web]:
    with _environment(), Web() as server:
        yield server


@contextmanager
def _environment() -> Iterator[pytest.MonkeyPatch]:
    """Nobody's settings, and connections that know nothing of another server's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        remote_places._store.cache_clear()
        yield patch
        remote_places._store.cache_clear()
