"""Stores on disks and on object storage of each kind keep the same promises."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvm_batch.errors import CommitError, ResultsError, UsageError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.stores.disk import DiskStore
from cvm_batch.results.stores.object_store import ObjectStore
from cvm_batch.results.stores.store import Store, results_root
from tests.archives.object_store import HASTE, SECRET, Fault, FaultyServer
from tests.results.stores.contract import StoreContract
from tests.results.stores.memory import MemoryStore
from tests.results.stores.servers import Objects, serving


class TestDisk(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = DiskStore(tmp_path / "lab" / "results")
        store.prepare()
        return store


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


@pytest.fixture(scope="module", params=["s3", "gs", "az"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[FaultyServer, str]]:
    with serving(request.param) as (server, address):
        ObjectStore(address).prepare()  # the first connection takes longer than HASTE waits
        yield server, address


@pytest.fixture
def server(served: tuple[FaultyServer, str]) -> Iterator[FaultyServer]:
    server, _ = served
    server.seen.clear()
    yield server
    server.mend()


@pytest.fixture
def address(served: tuple[FaultyServer, str], request: pytest.FixtureRequest) -> str:
    return f"{served[1]}/{request.node.name.partition('[')[0]}"


class TestObjectStore(StoreContract):
    @pytest.fixture
    def store(self, address: str) -> Store:
        return ObjectStore(address)


def test_one_file_is_one_request(server: FaultyServer, address: str) -> None:
    store = ObjectStore(address)
    store.prepare()
    server.seen.clear()
    store.put_new("slides/a.parquet", b"rows")
    store.read("slides/a.parquet")
    store.put("slides/a.parquet", b"rows")
    store.delete("slides/a.parquet")
    assert len(server.seen) == 4


def test_what_passes_is_waited_for(server: FaultyServer, address: str) -> None:
    store = ObjectStore(address, HASTE)
    store.exists("a")
    server.fail(503, times=1)
    store.put_new("a", b"1")
    server.fail(Fault.DROP, times=1)
    assert store.read("a") == b"1"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_an_answer_that_is_lost_is_no_failure(scheme: str) -> None:
    """The server has the object, and says the second time that there is one already."""
    with serving(scheme) as (server, address):
        results = ResultsFolder(address)
        results.prepare()
        server.fail(Fault.CUT, times=1, only=lambda seen: seen.method in ("PUT", "POST"))
        assert results.put_new("slides/a.parquet", b"rows")
        server.mend()
        assert not results.put_new("slides/a.parquet", b"others")
        assert results.read("slides/a.parquet") == b"rows"


def test_what_does_not_pass_is_told_in_time(server: FaultyServer, address: str) -> None:
    results = ResultsFolder(address)
    results.store = store = ObjectStore(address, HASTE)
    store.exists("a")
    server.fail(403)
    began = time.monotonic()
    with pytest.raises(CommitError, match=r"the server refuses access\. Check the cred") as caught:
        results.publish("a", b"1")
    with pytest.raises(ResultsError, match="refuses access"):
        results.read("a")
    with pytest.raises(ResultsError, match="cannot be written: the server refuses"):
        results.prepare()
    server.mend()
    assert time.monotonic() - began < 30
    assert SECRET not in str(caught.value)
    assert address in str(caught.value)


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_server_that_heeds_no_conditions_is_refused(scheme: str) -> None:
    with serving(scheme) as (server, address):
        assert isinstance(server, Objects)
        server.heeds_conditions = False
        with pytest.raises(ResultsError, match="heeds no conditions"):
            ResultsFolder(address).prepare()
        assert not server.objects


def test_a_bucket_that_is_not_there() -> None:
    with serving("s3"), pytest.raises(ResultsError, match="no such bucket"):
        ResultsFolder("s3://no-such-bucket/results").prepare()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://example.org/results", "web server"),
        ("ftp://example.org/results", "known are"),
        ("s3://", "no bucket"),
        ("s3://key:geheim@bucket/results", "credentials in the environment"),
        ("s3://bucket/results?X-Amz-Signature=geheim", "credentials in the environment"),
    ],
)
def test_addresses_that_results_cannot_have(given: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        ResultsFolder(given)
    assert "geheim" not in str(caught.value)


def test_addresses_and_paths() -> None:
    assert results_root("S3://bucket/results/") == "s3://bucket/results"
    assert results_root("results/") == Path("results")
    assert results_root(Path("/results")) == Path("/results")
    assert ResultsFolder("results").everywhere == Path("results").resolve()
    assert ResultsFolder("s3://bucket/results").everywhere == "s3://bucket/results"
