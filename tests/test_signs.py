"""Work that takes long shows that it goes on, before a single tile is classified."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cvm_batch import signs
from cvm_batch.archives.checking import verify_digest
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.archives.places.local_copies import LocalCopies


def large_file(folder: Path) -> Path:
    path = folder / "slide.svs"
    path.write_bytes(b"\0" * (20 << 20))
    return path


def test_hashing_shows_that_it_goes_on(tmp_path: Path) -> None:
    path = large_file(tmp_path)
    before = signs.seen()
    verify_digest(DiskPlace.of(path), hashlib.sha256(path.read_bytes()).hexdigest())
    assert signs.seen() >= before + 5


def test_copying_shows_that_it_goes_on(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path / "copies", 64 << 20)
    place = DiskPlace.of(large_file(tmp_path))
    before = signs.seen()
    with copies.hold("s3://bucket/slide.svs", place.open()) as copy:
        assert copy.stat().st_size == 20 << 20
    assert signs.seen() >= before + 3


def test_listing_a_folder_of_crops_shows_that_it_goes_on(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.png").touch()
    before = signs.seen()
    assert len(DiskPlace.of(tmp_path).list_files()) == 100
    assert signs.seen() >= before + 100
