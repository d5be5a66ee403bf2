"""Files that are opened on a disk: read at any offset, and watched."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cvm_batch.archives.places.disk import DiskFile, DiskPlace
from cvm_batch.errors import InputChangedError, ReadError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "slide.tar"
    path.write_bytes(bytes(range(100)))
    return path


def test_reads_at_any_offset(path: Path) -> None:
    file = DiskFile(path)
    assert file.read_at(10, 3) == b"\x0a\x0b\x0c"
    assert file.read_at(98, 10) == b"\x62\x63"
    assert file.read_at(100, 10) == b""
    assert file.opened.size == 100


def test_a_change_is_noticed(path: Path) -> None:
    file = DiskFile(path)
    file.check()
    with path.open("ab") as other:
        other.write(b"more")
    with pytest.raises(InputChangedError, match="changed after it was listed"):
        file.check()


def test_a_file_replaced_under_its_name_stays_whole(path: Path) -> None:
    file = DiskFile(path)
    path.unlink()
    path.write_bytes(b"another")
    assert file.read_at(0, 2) == b"\x00\x01"
    file.check()


def test_one_that_is_not_as_listed_does_not_open(path: Path) -> None:
    place = DiskPlace.of(path)
    listed = place.stamp()
    place.open(listed).close()
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputChangedError, match="changed"):
        place.open(listed)
    path.unlink()
    with pytest.raises(InputChangedError, match="is gone"):
        place.open(listed)


def test_closing_under_a_reader_never_gives_another_file_s_bytes(path: Path) -> None:
    """The number of a closed file is the next one's: a reader must not be left with it."""
    other = path.with_name("other")
    other.write_bytes(b"\xff" * 100)
    wrong: list[bytes] = []

    def read(file: DiskFile) -> None:
        try:
            while True:
                if (data := file.read_at(0, 1)) != b"\x00":
                    wrong.append(data)
        except ReadError:
            pass

    for _ in range(50):
        file = DiskFile(path)
        reader = threading.Thread(target=read, args=(file,))
        reader.start()
        file.close()
        others = [DiskFile(other) for _ in range(3)]
        reader.join(10)
        assert not reader.is_alive()
        for opened in others:
            opened.close()
    assert not wrong


def test_closing_ends_the_descriptor(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = [DiskFile(path) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    for file in files:
        file.close()
        file.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_cannot_be_opened_is_a_read_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError):
        DiskFile(tmp_path).read_at(0, 1)


def test_a_place_is_told_by_its_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert DiskPlace.of("slide.tar") == DiskPlace.of(path)
    assert DiskPlace.of(path).sibling("a/b") == DiskPlace.of(path.parent / "a" / "b")
    assert DiskPlace.of(path.parent).child("slide.tar") == DiskPlace.of(path)
