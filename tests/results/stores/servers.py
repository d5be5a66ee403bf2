"""Object storage of each kind on localhost, for the real clients.

S3 is moto's (tests/archives/object_store.py). Of Google's and Azure's servers there is none to be
had here, so that these speak just as much of their protocols as results need.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import escape

import pytest
from werkzeug.wrappers import Request, Response

from tests.archives.object_store import SECRET, FaultyServer, serving_s3

DATE = "Sat, 31 Jan 2026 22:00:00 GMT"


@dataclass
class Objects(FaultyServer):
    """A server of one bucket, its objects in memory."""

    app: Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]] = field(init=False)
    objects: dict[str, bytes] = field(default_factory=dict)
    heeds_conditions: bool = True

    def __post_init__(self) -> None:
        self.app = lambda environ, start: self.answer(Request(environ))(environ, start)
        super().__post_init__()

    def answer(self, request: Request) -> Response:
        raise NotImplementedError

    def put(self, name: str, data: bytes, *, new: bool) -> bool:
        """Whether it could be; checked and done under the lock, as a server would."""
        with self._lock:
            if new and self.heeds_conditions and name in self.objects:
                return False
            self.objects[name] = data
            return True


class Google(Objects):
    def answer(self, request: Request) -> Response:
        name = unquote(request.path.partition("/o/")[2])
        if request.method == "POST":
            # The multipart body that gcsfs makes: what the object is called, then its data.
            _, described, rest = request.get_data().split(b"\n\n", 2)
            name = json.loads(described.partition(b"\n")[0])["name"]
            data = rest.removesuffix(b"\n--==0==--")
            new = request.args.get("ifGenerationMatch") == "0"
            stored = self.put(name, data, new=new)
            return _json(self._described(name)) if stored else Response(status=412)
        if not name:
            prefix = request.args.get("prefix", "")
            found = [self._described(key) for key in sorted(self.objects) if key.startswith(prefix)]
            return _json({"items": found})
        if name not in self.objects:
            return Response(status=404)
        if request.method == "DELETE":
            del self.objects[name]
            return Response(status=204)
        if request.args.get("alt") == "media":
            return Response(self.objects[name])
        return _json(self._described(name))

    def _described(self, name: str) -> dict[str, Any]:
        size = str(len(self.objects[name]))
        stamp = {"updated": "2026-01-31T22:00:00.000Z", "generation": "1"}
        return {"name": name, "bucket": "bucket", "size": size, **stamp}


class Azure(Objects):
    def answer(self, request: Request) -> Response:
        name = request.path.removeprefix("/account/container").lstrip("/")
        if request.args.get("comp") == "list":
            return self._listing(request.args.get("prefix", ""))
        if request.method == "PUT":
            new = request.headers.get("If-None-Match") == "*"
            if self.put(name, request.get_data(), new=new):
                return Response(status=201, headers={"ETag": '"1"', "Last-Modified": DATE})
            return Response(status=409, headers={"x-ms-error-code": "BlobAlreadyExists"})
        if name not in self.objects:
            return Response(status=404, headers={"x-ms-error-code": "BlobNotFound"})
        if request.method == "DELETE":
            del self.objects[name]
            return Response(status=202)
        headers = {"ETag": '"1"', "Last-Modified": DATE, "x-ms-blob-type": "BlockBlob"}
        response = Response(self.objects[name], headers=headers)
        if asked := request.headers.get("x-ms-range"):
            whole = len(self.objects[name])
            if not whole:
                return Response(status=416, headers={"x-ms-error-code": "InvalidRange"})
            assert asked.startswith("bytes=0-"), "results are read whole"
            response.status_code = 206
            response.headers["Content-Range"] = f"bytes 0-{whole - 1}/{whole}"
        return response

    def _listing(self, prefix: str) -> Response:
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties>"
            f"<Content-Length>{len(data)}</Content-Length><Etag>1</Etag>"
            f"<Last-Modified>{DATE}</Last-Modified><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name, data in sorted(self.objects.items())
            if name.startswith(prefix)
        )
        text = f"<Blobs>{blobs}</Blobs><NextMarker />"
        kind = '<?xml version="1.0"?><EnumerationResults ContainerName="container">'
        return Response(f"{kind}{text}</EnumerationResults>", mimetype="application/xml")


def _json(value: Any) -> Response:
    return Response(json.dumps(value), mimetype="application/json")


@contextmanager
def serving(scheme: str) -> Iterator[tuple[FaultyServer, str]]:
    """A server of that kind, to which the environment leads, and a results folder's address."""
    if scheme == "s3":
        with serving_s3() as s3:
            yield s3, s3.uri("lab/results")
        return
    with pytest.MonkeyPatch.context() as patch:
        if scheme == "gs":
            with Google() as google:
                patch.setenv("STORAGE_EMULATOR_HOST", google.url)
                yield google, "gs://bucket/lab/results"
        else:
            key = base64.b64encode(SECRET.encode()).decode()
            with Azure() as azure:
                account = f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey={key}"
                patch.setenv(
                    "AZURE_STORAGE_CONNECTION_STRING", f"{account};BlobEndpoint={azure.url}/account"
                )
                yield azure, "az://container/lab/results"
