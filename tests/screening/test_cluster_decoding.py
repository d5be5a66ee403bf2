"""Slides read by Ray tasks: as they are read here, errors included."""

from __future__ import annotations

import os
import threading
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
    making.write_zip(tmp_path / "a.zip", tiles(10, seed=1))
    slide = planned(tmp_path / "a.zip")
    monkeypatch.setattr(cluster_decoding, "_PATIENCE_SECONDS", 0.5)
    holder = ray.remote(threading.Barrier).options(num_cpus=1).remote(1)
    ray.get(holder.wait.remote())  # another's actor has the only CPU now
    try:
        block = ClusterArchive(slide, PLAIN).read(0, 10)
    finally:
        ray.kill(holder)
    assert equal(block, open_archive(slide.address).read(0, 10))
