"""Places on object storage and web servers, read from real servers that fail on demand."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest

from cvm_batch.archives.places.files import FileStamp
from cvm_batch.archives.places.place import place_of
from cvm_batch.archives.places.remote import RemotePlace, remote_place
from cvm_batch.archives.places.remote_errors import refusal
from cvm_batch.errors import (
    BadFormatError,
    InputChangedError,
    ReadError,
    SlideError,
    UnsafeArchiveError,
    UsageError,
)
from cvm_batch.remote.addresses import is_remote
from cvm_batch.remote.asking import Patience
from tests.archives.object_store import (
    HASTE,
    S3,
    SECRET,
    Fault,
    FaultyServer,
    Web,
    serving_files,
    serving_s3,
)

DATA = bytes(range(256))


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def web() -> Iterator[Web]:
    with serving_files() as server:
        yield server


@pytest.fixture(params=["s3", "http"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[FaultyServer, RemotePlace]]:
    """A server and a file on it, `DATA`."""
    if request.param == "s3":
        server: S3 | Web = request.getfixturevalue("s3")
        uri = server.put("served/slide.zip", DATA)  # type: ignore[union-attr]
    else:
        server = request.getfixturevalue("web")
        server.files["served/slide.zip"] = DATA  # type: ignore[union-attr]
        uri = server.uri("served/slide.zip")
    server.seen.clear()
    yield server, remote_place(uri, HASTE)
    server.mend()


def change(server: FaultyServer, data: bytes) -> None:
    if isinstance(server, S3):
        server.put("served/slide.zip", data)
    elif isinstance(server, Web):
        server.files["served/slide.zip"] = data


# Reading


def test_reads_ranges(served: tuple[FaultyServer, RemotePlace]) -> None:
    server, place = served
    with closing(place.open()) as file:
        assert file.opened.size == len(DATA)
        server.sent = 0
        assert file.read_at(10, 5) == DATA[10:15]
        assert server.sent == 5
        assert file.read_at(250, 100) == DATA[250:]
        assert file.read_at(0, 256) == DATA
        assert file.read_at(256, 1) == file.read_at(1000, 1) == file.read_at(3, 0) == b""
        file.check()


def test_stamps_tell_versions_apart(served: tuple[FaultyServer, RemotePlace]) -> None:
    server, place = served
    before = place.stamp()
    assert before is not None
    assert (before.name, before.size) == ("slide.zip", len(DATA))
    assert before.version
    assert abs(before.mtime_ns / 1e9 - time.time()) < 60 or isinstance(server, Web)
    assert place.stamp() == before
    change(server, DATA[::-1])
    assert place.stamp() != before


def test_what_is_not_there(served: tuple[FaultyServer, RemotePlace]) -> None:
    _, place = served
    missing = place.sibling("other.zip")
    assert missing.stamp() is None
    assert not missing.exists()
    assert not missing.is_folder()
    with pytest.raises(InputChangedError, match="is gone"):
        missing.open()
    assert place.is_file()
    assert not place.is_folder()


def test_empty_files_are_read_without_asking(served: tuple[FaultyServer, RemotePlace]) -> None:
    server, place = served
    change(server, b"")
    with closing(place.open()) as file:
        server.seen.clear()
        assert file.read_at(0, 10) == b""
        assert not server.seen


def test_a_listed_file_opens_without_asking(served: tuple[FaultyServer, RemotePlace]) -> None:
    server, place = served
    listed = place.stamp()
    server.seen.clear()
    with closing(place.open(listed)) as file:
        assert file.read_at(0, 3) == DATA[:3]
        file.check()
    assert [seen.method for seen in server.seen] == ["GET"]


# Changes


@pytest.mark.parametrize("data", [DATA[::-1], DATA[:20], DATA + b"more"])
def test_a_change_under_the_reader(served: tuple[FaultyServer, RemotePlace], data: bytes) -> None:
    server, place = served
    with closing(place.open()) as file:
        file.read_at(0, 10)
        change(server, data)
        with pytest.raises(InputChangedError, match="changed"):
            file.read_at(10, 10)
        with pytest.raises(InputChangedError, match="changed"):
            file.read_at(0, len(DATA))


def test_a_change_since_it_was_listed(served: tuple[FaultyServer, RemotePlace]) -> None:
    server, place = served
    listed = place.stamp()
    change(server, DATA + b"more")
    with closing(place.open(listed)) as file, pytest.raises(InputChangedError, match="changed"):
        file.check()
    with closing(place.open(listed)) as file, pytest.raises(InputChangedError, match="changed"):
        file.read_at(0, 10)


def test_a_file_that_is_gone(s3: S3) -> None:
    place = remote_place(s3.put("gone/slide.zip", DATA), HASTE)
    with closing(place.open()) as file:
        s3.client.delete_object(Bucket=s3.bucket, Key="gone/slide.zip")
        with pytest.raises(InputChangedError, match="is gone"):
            file.read_at(0, 10)


@pytest.mark.parametrize(("tells_etag", "weighs"), [(True, False), (False, False)])
def test_web_servers_that_heed_no_conditions(web: Web, tells_etag: bool, weighs: bool) -> None:
    web.tells_etag, web.weighs_if_match = tells_etag, weighs
    web.files["slide.zip"] = DATA
    with closing(remote_place(web.uri("slide.zip"), HASTE).open()) as file:
        assert file.read_at(0, 10) == DATA[:10]
        web.files["slide.zip"] = DATA[::-1]
        web.modified += timedelta(seconds=1)
        with pytest.raises(InputChangedError, match="changed"):
            file.read_at(0, 10)


# Failures


@pytest.mark.parametrize("how", [502, 503, 429, *Fault])
def test_what_passes_is_waited_for(
    served: tuple[FaultyServer, RemotePlace], how: Fault | int
) -> None:
    server, place = served
    with closing(place.open()) as file:
        server.fail(how, times=1 if how is Fault.HANG else 2)
        assert file.read_at(10, 5) == DATA[10:15]


@pytest.mark.parametrize("how", [500, 503, 429, *Fault])
def test_what_does_not_pass_ends_in_time(
    served: tuple[FaultyServer, RemotePlace], how: Fault | int
) -> None:
    server, place = served
    with closing(place.open()) as file:
        server.fail(how)
        server.seen.clear()
        started = time.monotonic()
        with pytest.raises(ReadError, match="tried 3 times") as caught:
            file.read_at(10, 5)
        assert time.monotonic() - started < 10
        # A client may open another connection where one ended, before it tells of that.
        assert 3 <= len(server.seen) <= (6 if how is Fault.DROP else 3)
        assert place.uri in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, ReadError), (401, ReadError), (400, ReadError), (412, InputChangedError)],
)
def test_what_cannot_pass_is_not_tried_again(
    served: tuple[FaultyServer, RemotePlace], status: int, error: type[SlideError]
) -> None:
    server, place = served
    opened = place.open()
    server.fail(status)
    server.seen.clear()
    with pytest.raises(error):
        opened.read_at(0, 10)
    assert len(server.seen) == 1


def test_a_server_that_is_not_there(web: Web) -> None:
    place = remote_place("http://127.0.0.1:9/slide.zip", HASTE)
    with pytest.raises(ReadError, match="tried 3 times"):
        place.exists()


def test_a_trickle_does_not_go_on_for_ever() -> None:
    assert Patience().limit_s(0) == 30
    assert Patience().limit_s(32 * 1024 * 60) == 90


def test_no_retry_begins_late() -> None:
    patience = Patience(retries=3, last_retry_s=12)
    now = time.monotonic()
    assert patience.may_retry(3, now)
    assert not patience.may_retry(4, now)
    assert not patience.may_retry(1, now - 13)


# Object storage


def test_folders_and_what_they_hold(s3: S3) -> None:
    for key in ("f/b.zip", "f/a/2.png", "f/a/1.png", "f/a/deep/3.png", "f/.hidden", "fa/x.png"):
        s3.put(key, b"12")
    s3.put("f/", b"")  # as consoles do, to show a folder
    s3.put("f/empty/", b"")
    folder = remote_place(s3.uri("f/"), HASTE)
    assert folder.is_folder()
    assert not folder.is_file()
    assert [child.name for child in folder.children()] == [".hidden", "a", "b.zip", "empty"]
    assert folder.child("a").is_folder()
    assert not folder.child("b").is_folder()
    assert list(folder.list_files().names) == [".hidden", "b.zip"]
    names = [".hidden", "a/1.png", "a/2.png", "a/deep/3.png", "b.zip"]
    assert list(folder.list_files(deep=True).names) == names
    pngs = folder.list_files(keep=lambda name: name.endswith(".png"), deep=True)
    assert list(pngs.names) == names[1:4]
    assert remote_place(f"s3://{s3.bucket}").is_folder()


def test_a_listing_has_the_stamps_of_the_files(s3: S3) -> None:
    s3.put("stamps/a.png", b"1")
    folder = remote_place(s3.uri("stamps"), HASTE)
    (listed,) = folder.list_files()
    assert listed == folder.child("a.png").stamp()


def test_listings_of_more_than_a_page(s3: S3) -> None:
    s3.put_many(f"many/{number:04d}" for number in range(1050))
    folder = remote_place(s3.uri("many"), HASTE)
    names = [f"{number:04d}" for number in range(1050)]
    s3.seen.clear()
    assert list(folder.list_files().names) == names
    assert len(s3.seen) == 2
    assert list(folder.list_files(deep=True).names) == names
    assert [child.name for child in folder.children()] == names


def test_a_listing_of_nothing(s3: S3) -> None:
    with pytest.raises(InputChangedError, match="is gone"):
        remote_place(s3.uri("nowhere"), HASTE).list_files()
    assert not remote_place("s3://no-such-bucket/slides", HASTE).exists()
    with pytest.raises(InputChangedError, match="is gone"):
        remote_place("s3://no-such-bucket", HASTE).children()


def test_a_listing_that_breaks_off_is_asked_for_again(s3: S3) -> None:
    s3.put("broken/a.png", b"1")
    s3.fail(503, times=2)
    assert len(remote_place(s3.uri("broken"), HASTE).list_files()) == 1


def test_names_that_are_no_files_elsewhere(s3: S3) -> None:
    s3.put("odd/a//b.png", b"1")
    with pytest.raises(UnsafeArchiveError, match="empty part"):
        remote_place(s3.uri("odd"), HASTE).list_files(deep=True)


def test_names_with_signs_in_them(s3: S3) -> None:
    name = "what? 100 % #1 + ü.png"
    s3.put(f"signs/{name}", DATA)
    (child,) = remote_place(s3.uri("signs"), HASTE).children()
    assert child.name == name
    assert remote_place(child.uri) == child
    with closing(child.open()) as file:
        assert file.read_at(0, 3) == DATA[:3]


# Web servers


def test_web_names_are_encoded(web: Web) -> None:
    name = "what? 100 % #1 ü.zip"
    web.files[f"a b/{name}"] = DATA
    folder = remote_place(web.uri("a b"), HASTE)
    place = folder.child(name)
    assert place.name == name
    assert remote_place(place.uri) == place
    with closing(place.open()) as file:
        assert file.read_at(0, 3) == DATA[:3]
    assert place.sibling(name) == place


def test_web_folders_cannot_be_listed(web: Web) -> None:
    folder = remote_place(web.uri("slides"), HASTE)
    assert not folder.is_folder()
    with pytest.raises(BadFormatError, match="cannot be listed"):
        folder.children()
    with pytest.raises(UsageError, match=r"\.zarr\.zip"):
        place_of("https://example.org/slide.zarr/")


def test_web_servers_without_ranges(web: Web) -> None:
    web.files["slide.zip"], web.serves_ranges = DATA, False
    with closing(remote_place(web.uri("slide.zip"), HASTE).open()) as file:
        assert file.read_at(0, len(DATA)) == DATA
        with pytest.raises(ReadError, match="serve ranges"):
            file.read_at(0, 10)


def test_redirects_are_followed_but_not_out_of_encryption(web: Web) -> None:
    web.files["there.zip"] = DATA
    web.redirects = {
        "here.zip": "/there.zip?X-Amz-Signature=abc",
        "out.zip": "http://example.org/slide.zip",
        "round.zip": "round.zip",
    }
    with closing(remote_place(web.uri("here.zip"), HASTE).open()) as file:
        assert file.read_at(0, 10) == DATA[:10]
    with pytest.raises(ReadError, match="without encryption"):
        remote_place(web.uri("out.zip"), HASTE).stamp()
    with pytest.raises(ReadError, match="redirects more than"):
        remote_place(web.uri("round.zip"), HASTE).stamp()


def test_a_file_that_could_change_unnoticed_is_refused(web: Web) -> None:
    with pytest.raises(ReadError, match="could change between two reads"):
        remote_place(web.uri("slide.zip")).open(FileStamp("slide.zip", 10, 0))


# Addresses


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:geheim@example.org/slide.zip",
        "https://geheim@example.org/slide.zip",
        "https://example.org/slide.zip?token=geheim",
        "https://example.org/slide.zip#geheim",
        "https://example.org?geheim/x",
        "s3://key:geheim@bucket/slide.zip",
        "s3://bucket/slide.zip?X-Amz-Signature=geheim",
        "az://container/slide.zip?sv=2024&sig=geheim",
        "gs://bucket/slide.zip?x-goog-signature=geheim",
    ],
)
def test_addresses_with_secrets_are_refused_without_repeating_them(uri: str) -> None:
    with pytest.raises(UsageError, match="environment") as caught:
        remote_place(uri)
    assert "geheim" not in str(caught.value)


def test_unknown_kinds_of_addresses() -> None:
    with pytest.raises(UsageError, match=r"ftp://.*cannot be read"):
        place_of("ftp://example.org/slide.zip")
    assert is_remote("S3://bucket/slide.zip")
    assert not is_remote("/slides/s3:/slide.zip")
    assert not is_remote("C:/slide.zip")


@pytest.mark.parametrize("uri", ["s3://", "s3:///slide.zip", "https:///slide.zip"])
def test_addresses_of_nothing(uri: str) -> None:
    with pytest.raises(UsageError, match="no bucket or host"):
        place_of(uri)


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "[::1", "10.0.0.1:80"])
def test_images_of_patients_travel_encrypted(host: str) -> None:
    with pytest.raises(UsageError, match="unencrypted"):
        place_of(f"http://{host}/slide.zip")
    for local in ("localhost:8080", "127.0.0.1", "[::1]:80"):
        assert place_of(f"http://{local}/slide.zip").name == "slide.zip"


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvm_batch.remote.addresses.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'cvm-batch\[gs\]'"):
        place_of("gs://bucket/slide.zip")


def test_a_client_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="account and the credentials"):
        place_of("az://container/slide.zip").exists()


def test_places_beside_and_below() -> None:
    place = remote_place("s3://bucket/a/slide.zip")
    assert place.sibling("slide.csv").uri == "s3://bucket/a/slide.csv"
    assert place.sibling("").uri == "s3://bucket/a"
    assert place.child("x/y").uri == "s3://bucket/a/slide.zip/x/y"
    bucket = remote_place("s3://bucket/")
    assert (bucket.uri, bucket.name) == ("s3://bucket", "bucket")
    # What lies beside a bucket belongs to other people.
    assert bucket.sibling("bucket.sha256").uri == "s3://bucket/bucket.sha256"


def test_places_are_told_by_their_address() -> None:
    one, other = remote_place("s3://b/a"), remote_place("s3://b/a/", HASTE)
    assert one == other
    assert len({one, other}) == 1
    assert one < remote_place("s3://b/b")


def test_places_and_their_errors_pickle(s3: S3) -> None:
    place = remote_place(s3.put("pickled.zip", DATA), HASTE)
    again = pickle.loads(pickle.dumps(place))
    assert (again, again.patience) == (place, HASTE)
    with closing(again.open()) as file:
        assert file.read_at(0, 3) == DATA[:3]
    error = refusal(place, ConnectionError(SECRET), 2)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_child_process_makes_its_own_connections(s3: S3) -> None:
    """Sockets, and the thread of the connections, do not survive a fork."""
    place = remote_place(s3.put("forked.zip", DATA), HASTE)
    opened = place.open().opened
    child = os.fork()
    if not child:
        try:
            os._exit(0 if place.read(0, 3, opened) == DATA[:3] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("how", [403, 500, Fault.DROP])
def test_messages_tell_no_secrets(s3: S3, how: Fault | int) -> None:
    place = remote_place(s3.put("secret.zip", DATA), HASTE)
    s3.fail(how)
    with pytest.raises(ReadError) as caught:
        place.stamp()
    s3.mend()
    assert SECRET not in str(caught.value)
    assert "AKIA" not in str(caught.value)
    assert caught.value.__cause__ is None
