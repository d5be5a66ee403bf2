"""Recorded digests and recorded numbers of cells, held against what an archive gives."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import ExpectedFrom, Integrity
from cvm_batch.archives.contents import changed_at
from cvm_batch.errors import (
    BadFormatError,
    ChecksumMismatchError,
    InputChangedError,
    Reason,
    SlideError,
    UnsafeArchiveError,
)
from tests.archives.contract import assert_block
from tests.archives.making import (
    Cells,
    cells,
    image_names,
    record,
    table_of,
    write_folder,
    write_table,
    write_tar,
    write_zip,
)
from tests.archives.reading import describe, flip_bit, identity_at, open_at, read_all

COUNT = 6


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(COUNT)


@pytest.fixture
def folder(slide: Cells, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "slide", slide.tiles)


class TestRecordedDigests:
    def test_are_those_of_the_file_that_is_open(self, slide: Cells, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "slide.tar", slide)
        record(path)
        whole, copy = path.read_bytes(), tmp_path / "copy"
        path.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
        with closing(open_at(path)) as archive:
            copy.write_bytes(whole)
            os.utime(copy, ns=(0, path.stat().st_mtime_ns))
            copy.replace(path)
            with pytest.raises(InputChangedError):
                archive.read(0, COUNT)

    def test_of_sidecar_and_manifest_must_agree(self, slide: Cells, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "slide.tar", slide)
        record(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert describe(path, sha256=digest).integrity is Integrity.VERIFIED
        with pytest.raises(ChecksumMismatchError, match="another digest"):
            describe(path, sha256="0" * 64)

    def test_make_a_slide_verified(self, slide: Cells, folder: Path) -> None:
        assert describe(folder).integrity is Integrity.UNVERIFIED
        record(folder)
        assert describe(folder).integrity is Integrity.VERIFIED
        assert_block(read_all(folder), slide, 0, {})

    def test_are_a_part_of_the_identity(self, folder: Path) -> None:
        bare = identity_at(folder)
        sidecar = record(folder)
        recorded = identity_at(folder)
        assert recorded != bare
        assert describe(folder).identity == recorded
        os.utime(sidecar, ns=(1, 1))
        assert identity_at(folder) != recorded

    def test_show_every_flipped_bit(self, folder: Path) -> None:
        record(folder)
        rng = np.random.default_rng(0)
        file = folder / "00003.png"
        whole = file.read_bytes()
        for _ in range(20):
            flip_bit(file, rng)
            with pytest.raises(ChecksumMismatchError, match=r"00003\.png has the SHA-256"):
                read_all(folder)
            file.write_bytes(whole)
        assert read_all(folder).readable.all()

    def test_show_a_file_that_is_gone(self, folder: Path) -> None:
        record(folder)
        (folder / "00003.png").unlink()
        with pytest.raises(ChecksumMismatchError, match=r"00003\.png is not there"):
            read_all(folder)

    def test_must_cover_every_file(self, slide: Cells, folder: Path) -> None:
        record(folder)
        (folder / "00003.png").rename(folder / "other.png")
        with pytest.raises(BadFormatError, match=r"'slide/other\.png', of which no digest"):
            describe(folder)

    def test_need_not_cover_the_cells_table(self, slide: Cells, folder: Path) -> None:
        record(folder)
        write_table(Path(f"{folder}.cells.csv"), table_of(slide, image_names(COUNT)))
        assert describe(folder).integrity is Integrity.VERIFIED

    def test_of_a_manifest_cover_a_slide_of_one_file(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "slide.tar", cells(COUNT))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert describe(path, sha256=digest).integrity is Integrity.VERIFIED
        assert read_all(path, sha256=digest).readable.all()
        with pytest.raises(ChecksumMismatchError):
            read_all(path, sha256="0" * 64)

    def test_of_a_manifest_do_not_cover_a_folder(self, folder: Path) -> None:
        with pytest.raises(BadFormatError, match="no digest is recorded"):
            describe(folder, sha256="0" * 64)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("no digest\n", BadFormatError),
        (f"{'0' * 63}  a.png\n", BadFormatError),
        (f"{'0' * 64}  /etc/passwd\n", UnsafeArchiveError),
        (f"{'0' * 64}  ../a.png\n", UnsafeArchiveError),
        (f"{'0' * 64}  a.png\n{'1' * 64}  a.png\n", BadFormatError),
    ],
)
def test_a_senseless_record_fails_the_slide(
    folder: Path, text: str, error: type[SlideError]
) -> None:
    Path(f"{folder}.sha256").write_text(text)
    with pytest.raises(error, match=r"slide\.sha256"):
        describe(folder)


def test_names_with_newlines_are_recorded_as_sha256sum_does(slide: Cells, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a\nb", slide.tiles[:1])
    digest = hashlib.sha256((folder / "00000.png").read_bytes()).hexdigest()
    Path(f"{folder}.sha256").write_text(f"\\{digest}  a\\nb/00000.png\n")
    assert read_all(folder).readable.all()


class TestExpectedCells:
    def test_that_are_there_say_where_the_number_is_from(self, folder: Path) -> None:
        info = describe(folder, cells_expected=COUNT)
        assert (info.tiles, info.expected_from, info.missing) == (COUNT, ExpectedFrom.MANIFEST, 0)

    @pytest.mark.parametrize(("start", "stop"), [(0, 9), (4, 8), (5, 6), (6, 9), (8, 9)])
    def test_that_are_lacking_are_missing_tiles(
        self, slide: Cells, folder: Path, start: int, stop: int
    ) -> None:
        with closing(open_at(folder, cells_expected=9)) as archive:
            info = archive.describe()
            assert (info.tiles, info.missing) == (9, 3)
            faults = dict.fromkeys(range(max(start, COUNT), stop), Reason.MISSING_TILES)
            assert_block(archive.read(start, stop), slide, start, faults)

    def test_fewer_than_there_are_is_bad_format(self, folder: Path) -> None:
        with pytest.raises(BadFormatError, match="holds 6 tiles, but the manifest expects 5"):
            describe(folder, cells_expected=5)


def test_a_slide_whose_table_has_yet_to_come_is_as_new_as_its_files(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "slide.zip", cells(3).tiles)
    address = SlideAddress(uri=str(path), cells_uri=str(tmp_path / "later.csv"))
    assert changed_at(address) == pytest.approx(path.stat().st_ctime, abs=0.001)
