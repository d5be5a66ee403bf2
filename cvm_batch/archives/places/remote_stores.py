"""The kinds of servers that remote places lie on: one class each, over fsspec's client for it.

Each method is one request, made once: `RemotePlace` asks again. Of the clients only the
connection and its credentials are used, as their own ways to read neither hold on to one
version of a file nor page through listings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import urljoin, urlsplit

import fsspec  # type: ignore[import-untyped]

from cvm_batch.archives.places.files import FileStamp, changed
from cvm_batch.errors import BadFormatError, ReadError
from cvm_batch.remote.addresses import host_and_key
from cvm_batch.remote.clients import azure_client, google_client, s3_client

_PAGE = 1000
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)


class Page(NamedTuple):
    """A part of a listing. Names are relative to the folder; an empty page means no folder."""

    files: list[FileStamp]
    folders: list[str]
    following: str = ""
    """What to ask the next page with."""


class Store(Protocol):
    """One kind of server. Raises what its client raises, or SlideError.

    Stamps of single files have no name: the address has it.
    """

    fs: Any
    is_guarded: bool
    """Whether no `read` gives anything of another version than the one that was opened."""

    async def stamp(self, uri: str) -> FileStamp: ...

    async def is_folder(self, uri: str) -> bool: ...

    async def page(self, uri: str, deep: bool, following: str) -> Page: ...

    async def read(self, uri: str, offset: int, size: int, opened: FileStamp) -> bytes:
        """``size`` bytes, all of which lie inside of the file."""
        ...


class S3Store:
    """Amazon S3, and what speaks like it. ETags tell versions apart, in listings as well."""

    is_guarded = True

    def __init__(self, answer_s: float) -> None:
        self.fs = s3_client(answer_s)

    async def stamp(self, uri: str) -> FileStamp:
        bucket, key = host_and_key(uri)
        if not key:
            raise FileNotFoundError(uri)
        found = await self.fs._call_s3("head_object", Bucket=bucket, Key=key)
        return self._stamp("", found["ContentLength"], found)

    async def is_folder(self, uri: str) -> bool:
        return _holds_anything(await self._page(uri, deep=True, limit=1))

    async def page(self, uri: str, deep: bool, following: str) -> Page:
        more = {"ContinuationToken": following} if following else {}
        return await self._page(uri, deep, _PAGE, **more)

    async def read(self, uri: str, offset: int, size: int, opened: FileStamp) -> bytes:
        bucket, key = host_and_key(uri)
        answer = await self.fs._call_s3(
            "get_object",
            Bucket=bucket,
            Key=key,
            Range=_range(offset, size),
            IfMatch=f'"{opened.version}"',
        )
        async with answer["Body"] as body:
            return _whole(await body.read(), size)

    async def _page(self, uri: str, deep: bool, limit: int, **more: str) -> Page:
        bucket, prefix = _bucket_and_prefix(uri)
        if not deep:
            more["Delimiter"] = "/"
        found = await self.fs._call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=limit, **more
        )
        return Page(
            [
                self._stamp(entry["Key"].removeprefix(prefix), entry["Size"], entry)
                for entry in found.get("Contents", ())
            ],
            _folders((entry["Prefix"] for entry in found.get("CommonPrefixes", ())), prefix),
            found.get("NextContinuationToken", ""),
        )

    def _stamp(self, name: str, size: int, entry: Mapping[str, Any]) -> FileStamp:
        return FileStamp(name, size, _ns(entry["LastModified"]), entry["ETag"].strip('"'))


class GoogleStore:
    """Google Cloud Storage. Each version of an object has a generation, by its number."""

    is_guarded = True

    def __init__(self, answer_s: float) -> None:
        self.fs = google_client(answer_s)

    async def stamp(self, uri: str) -> FileStamp:
        bucket, key = host_and_key(uri)
        if not key:
            raise FileNotFoundError(uri)
        return self._stamp("", await self.fs._call("GET", "b/{}/o/{}", bucket, key, json_out=True))

    async def is_folder(self, uri: str) -> bool:
        return _holds_anything(await self._page(uri, deep=True, limit=1))

    async def page(self, uri: str, deep: bool, following: str) -> Page:
        return await self._page(uri, deep, _PAGE, following)

    async def read(self, uri: str, offset: int, size: int, opened: FileStamp) -> bytes:
        bucket, key = host_and_key(uri)
        _, data = await self.fs._call(
            "GET",
            "b/{}/o/{}",
            bucket,
            key,
            headers={"Range": _range(offset, size)},
            alt="media",
            ifGenerationMatch=opened.version,
        )
        return _whole(data, size)

    async def _page(self, uri: str, deep: bool, limit: int, following: str = "") -> Page:
        bucket, prefix = _bucket_and_prefix(uri)
        found = await self.fs._call(
            "GET",
            "b/{}/o",
            bucket,
            json_out=True,
            prefix=prefix or None,
            delimiter=None if deep else "/",
            maxResults=limit,
            pageToken=following or None,
        )
        return Page(
            [
                self._stamp(entry["name"].removeprefix(prefix), entry)
                for entry in found.get("items", ())
            ],
            _folders(found.get("prefixes", ()), prefix),
            found.get("nextPageToken", ""),
        )

    def _stamp(self, name: str, entry: Mapping[str, Any]) -> FileStamp:
        updated = datetime.fromisoformat(entry["updated"])
        return FileStamp(name, int(entry["size"]), _ns(updated), entry["generation"])


class AzureStore:
    """Azure Blob Storage: ``az://container/name``, the account from the environment."""

    is_guarded = True

    def __init__(self, answer_s: float) -> None:
        self.fs = azure_client()
        self._once = {
            "retry_total": 0,
            "connection_timeout": answer_s,
            "read_timeout": answer_s,
        }

    async def stamp(self, uri: str) -> FileStamp:
        found = await self._blob(uri).get_blob_properties(**self._once)
        if _is_azure_folder(found):
            raise FileNotFoundError(uri)
        return self._stamp("", found)

    async def is_folder(self, uri: str) -> bool:
        return _holds_anything(await self._page(uri, deep=True, limit=1))

    async def page(self, uri: str, deep: bool, following: str) -> Page:
        return await self._page(uri, deep, _PAGE, following)

    async def read(self, uri: str, offset: int, size: int, opened: FileStamp) -> bytes:
        found = await self._blob(uri).download_blob(offset, size, **self._once)
        # What is too large for one request, the client reads on of this version only.
        if found.properties.etag.strip('"') != opened.version:
            raise changed(uri)
        return _whole(await found.readall(), size)

    async def _page(self, uri: str, deep: bool, limit: int, following: str = "") -> Page:
        container, prefix = _bucket_and_prefix(uri)
        client = self.fs.service_client.get_container_client(container)
        pages = (client.list_blobs if deep else client.walk_blobs)(
            name_starts_with=prefix or None,
            include=["metadata"],
            results_per_page=limit,
            **self._once,
        ).by_page(continuation_token=following or None)
        found = [entry async for entry in await anext(pages)]
        blobs = [entry for entry in found if hasattr(entry, "etag")]
        return Page(
            [
                self._stamp(blob.name.removeprefix(prefix), blob)
                for blob in blobs
                if not _is_azure_folder(blob)
            ],
            _folders((entry.name for entry in found if not hasattr(entry, "etag")), prefix),
            pages.continuation_token or "",
        )

    def _blob(self, uri: str) -> Any:
        container, key = host_and_key(uri)
        if not key:
            raise FileNotFoundError(uri)
        return self.fs.service_client.get_blob_client(container, key)

    def _stamp(self, name: str, blob: Any) -> FileStamp:
        return FileStamp(name, blob.size, _ns(blob.last_modified), blob.etag.strip('"'))


class WebStore:
    """Web servers that serve ranges. They have no listings, so there are no folders."""

    #: Each answer's own ETag, or else its date, is held against the file's.
    is_guarded = True

    def __init__(self, answer_s: float) -> None:
        from aiohttp import ClientTimeout

        self.fs = fsspec.filesystem(
            "https",
            skip_instance_cache=True,
            encoded=True,
            client_kwargs={
                # Of a proxy, and of users and passwords in ~/.netrc.
                "trust_env": True,
                "auto_decompress": False,
                "timeout": ClientTimeout(
                    total=None, sock_connect=answer_s, sock_read=answer_s, connect=answer_s
                ),
            },
        )

    async def stamp(self, uri: str) -> FileStamp:
        async with await self._answer("HEAD", uri, {}) as answer:
            answer.raise_for_status()
            if answer.content_length is None:
                raise ReadError(
                    f"{uri} cannot be read in parts: its server does not tell how long it is. "
                    "Have it tell Content-Length, or copy the file to a disk."
                )
            return _web_stamp(answer.content_length, answer.headers)

    async def is_folder(self, uri: str) -> bool:
        return False

    async def page(self, uri: str, deep: bool, following: str) -> Page:
        raise BadFormatError(
            f"{uri} cannot be listed: web servers do not tell what a folder holds. Pack zarr as "
            ".zarr.zip and crops as .zip, or name the slides one by one in a manifest table."
        )

    async def read(self, uri: str, offset: int, size: int, opened: FileStamp) -> bytes:
        headers = {"Range": _range(offset, size)}
        if opened.version.startswith('"'):  # weak ones match nothing, by definition
            headers["If-Match"] = opened.version
        async with await self._answer("GET", uri, headers) as answer:
            answer.raise_for_status()
            _check_answer(uri, answer, offset, size, opened)
            # No more than was asked for, whatever the server sends.
            data: bytes = await answer.content.readexactly(size)
            return data

    async def _answer(self, method: str, uri: str, headers: Mapping[str, str]) -> Any:
        """Redirects followed, but never out of encryption."""
        session = await self.fs.set_session()
        at = uri
        for _ in range(_MAX_REDIRECTS):
            answer = await session.request(
                method,
                self.fs.encode_url(at),
                headers={"Accept-Encoding": "identity", **headers},
                allow_redirects=False,
            )
            to = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or to is None:
                return answer
            answer.release()
            at = _redirected(uri, at, to)
        raise ReadError(f"{uri} redirects more than {_MAX_REDIRECTS} times. Check the server.")


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    """What the keys in a folder begin with."""
    bucket, key = host_and_key(uri)
    return bucket, f"{key}/" if key else ""


def _folders(prefixes: Iterable[str], prefix: str) -> list[str]:
    return [found.removeprefix(prefix).removesuffix("/") for found in prefixes]


def _holds_anything(page: Page) -> bool:
    return bool(page.files or page.folders)


def _ns(time: datetime) -> int:
    # Of heads and of listings, which do not all tell fractions of a second.
    return int(time.timestamp()) * 1_000_000_000


def _range(offset: int, size: int) -> str:
    return f"bytes={offset}-{offset + size - 1}"


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ConnectionError(f"{len(data)} bytes came of {size}")
    return data


def _is_azure_folder(blob: Any) -> bool:
    """Accounts with a hierarchy show folders as empty blobs as well."""
    return (blob.metadata or {}).get("hdi_isfolder") == "true"


def _web_stamp(size: int, headers: Mapping[str, str]) -> FileStamp:
    try:
        modified = _ns(parsedate_to_datetime(headers["Last-Modified"]))
    except (KeyError, ValueError):
        modified = 0
    return FileStamp("", size, modified, headers.get("ETag", ""))


def _check_answer(uri: str, answer: Any, offset: int, size: int, opened: FileStamp) -> None:
    """Raise unless it is the range that was asked for, of the file as it was opened."""
    got = _web_stamp(opened.size, answer.headers)
    if (got.version if opened.version else got.mtime_ns) != (opened.version or opened.mtime_ns):
        raise changed(uri)
    if answer.status == 206:
        asked = f"bytes {offset}-{offset + size - 1}/{opened.size}"
        if answer.headers.get("Content-Range") != asked:
            raise changed(uri)
    elif size != opened.size:
        raise ReadError(
            f"{uri} cannot be read in parts: its server sends the whole file instead of a range. "
            "Have it serve ranges, or copy the file to a disk."
        )


def _redirected(uri: str, at: str, to: str) -> str:
    """Where a redirect leads. Raises ReadError where that is out of encryption."""
    target = urljoin(at, to)
    before, after = urlsplit(at), urlsplit(target)
    stays = (before.scheme, before.hostname) == (after.scheme, after.hostname)
    if after.scheme != "https" and not stays:
        raise ReadError(
            f"{uri} redirects to an address without encryption, on {after.hostname}. Have the "
            "server redirect to https:// only."
        )
    return target
