"""Slides read by Ray tasks: as they are read here, errors included."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import TileBlock
from cvm_batch.archives.formats import open_archive
from cvm_batch.archives.opening import PLAIN
from cvm_batch.errors import ChecksumMismatchError, InputChangedError, ReadError
from cvm_batch.screening import cluster_decoding
from cvm_batch.screening.cluster_decoding import ClusterArchive
from cvm_batch.screening.work import SlideSource
from tests.archives import making
from tests.faults.killers import arm
from tests.screening.test_run import flip_byte_in_member, tiles

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def one_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of one CPU, whose processes die of files called ``grenade``."""
    ours = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        armed = tmp_path_factory.mktemp("armed") / "folder"
        arm(armed, patch)
        patch.setenv("PYTHONPATH", f"{armed}{os.pathsep}{ours}")
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def planned(path: Path) -> SlideSource:
    address = SlideAddress(uri=str(path))
    archive = open_archive(address)
    identity = archive.describe().identity
    archive.close()
    return SlideSource(0, path.name, address, identity)


def equal(one: TileBlock, other: TileBlock) -> bool:
    readable = np.flatnonzero(one.readable)
    return (
        np.array_equal(one.readable, other.readable)
        and one.faults == other.faults
        and one.cell_id == other.cell_id
        and np.array_equal(one.index, other.index)
        and all(np.array_equal(one.tiles[row], other.tiles[row]) for row in readable)
    )


def test_blocks_are_those_that_are_read_here(tmp_path: Path) -> None:
    making.write_zarr(tmp_path / "a.zarr", tiles(40, seed=1), chunk=16)
    making.write_folder(tmp_path / "b", tiles(40, seed=2))
    (tmp_path / "b" / sorted(os.listdir(tmp_path / "b"))[25]).write_bytes(b"no image")
    for name in ("a.zarr", "b"):
        slide = planned(tmp_path / name)
        here, there = open_archive(slide.address), ClusterArchive(slide, PLAIN)
        assert there.describe() == here.describe()
        for start, stop in ((0, 16), (16, 40)):
            assert equal(there.read(start, stop), here.read(start, stop))
    assert not there.read(16, 40).readable.all()


def test_errors_of_a_slide_arrive_as_themselves(tmp_path: Path) -> None:
    making.write_zip(tmp_path / "a.zip", tiles(10, seed=1))
    flip_byte_in_member(tmp_path / "a.zip")
    slide = planned(tmp_path / "a.zip")
    with pytest.raises(ChecksumMismatchError, match=r"a\.zip"):
        ClusterArchive(slide, PLAIN).read(0, 10)
    with pytest.raises(InputChangedError):
        ClusterArchive(replace(slide, identity="another"), PLAIN).read(0, 1)


def test_a_slide_that_ends_its_readers_costs_no_other(tmp_path: Path) -> None:
    making.write_zip(tmp_path / "a.zip", tiles(10, seed=1))
    making.write_zip(tmp_path / "grenade.zip", tiles(10, seed=1))
    with pytest.raises(ReadError, match=r"process that read .*grenade\.zip died"):
        ClusterArchive(planned(tmp_path / "grenade.zip"), PLAIN).read(0, 10)
    assert ClusterArchive(planned(tmp_path / "a.zip"), PLAIN).read(0, 10).readable.all()


def test_what_nobody_reads_elsewhere_is_read_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one wait, not after one for each block; and on the cluster again once that answers."""
    making.write_zip(tmp_path / "a.zip", tiles(10, seed=1))
    slide = planned(tmp_path / "a.zip")
    monkeypatch.setattr(cluster_decoding, "_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(cluster_decoding, "_REST_SECONDS", 6.0)
    turns = cluster_decoding._Turns()
    monkeypatch.setattr(cluster_decoding, "_TURNS", turns)
    holder = ray.remote(threading.Barrier).options(num_cpus=1).remote(1)
    ray.get(holder.wait.remote())  # another's actor has the only CPU now
    there, here = ClusterArchive(slide, PLAIN), open_archive(slide.address)
    began = time.monotonic()
    try:
        blocks = [there.read(start, start + 1) for start in range(10)]
    finally:
        ray.kill(holder)
    assert 1.0 <= time.monotonic() - began < 6.0
    assert all(equal(block, here.read(at, at + 1)) for at, block in enumerate(blocks))
    # A process that decodes takes seconds to come up.
    monkeypatch.setattr(cluster_decoding, "_PATIENCE_SECONDS", 30.0)
    deadline = time.monotonic() + 120
    while not turns.asks(0):  # a time at which nobody tries yet
        there.read(0, 10)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_of_readers_that_rest_one_tries_for_all() -> None:
    turns = cluster_decoding._Turns()
    assert turns.asks(0)
    turns.silent(30)
    assert not turns.asks(89)
    assert turns.asks(90)
    assert not turns.asks(91), "another one waits for the answer"
    turns.silent(120)
    assert not turns.asks(179)
    assert turns.asks(180)
    turns.answered()
    assert turns.asks(181)


def test_what_a_node_lacks_is_no_fault_of_the_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder is not installed where the task runs; here it is."""
    making.write_zip(tmp_path / "a.zip", tiles(10, seed=1))
    slide = planned(tmp_path / "a.zip")

    @ray.remote(num_cpus=1, max_retries=0)
    def incomplete(*_: object) -> None:
        import cvm_batch_decoder_that_is_not_installed  # noqa: F401

    monkeypatch.setattr(cluster_decoding, "_READ", incomplete)
    assert equal(ClusterArchive(slide, PLAIN).read(0, 10), open_archive(slide.address).read(0, 10))
