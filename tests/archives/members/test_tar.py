"""Tar files of every kind, and those that are not whole. Python's own tarfile must agree."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvm_batch.archives.limits import MIB
from cvm_batch.archives.members.packed import TarMembers
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.errors import BadFormatError, EmptyArchiveError
from tests.archives.making import Cells, cells, encode, image_names, write_tar, write_tar_members
from tests.archives.reading import assert_honest, describe, read_all
from tests.archives.tar_making import (
    BLOCK,
    END,
    LAYOUTS,
    PNG,
    by_tarfile,
    contents,
    header,
    member,
    padded,
    pax,
    tar,
)


@pytest.fixture(scope="module")
def slide() -> Cells:
    return cells(23)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\\/:", exclude_categories=["Cs"]),
    min_size=1,
    max_size=130,
).filter(lambda text: text not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


class TestEveryKind:
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        files=st.dictionaries(PATHS, st.binary(max_size=1500), max_size=6),
        layout=st.sampled_from(LAYOUTS),
    )
    def test_members_are_those_that_tarfile_reads(
        self, tmp_path: Path, files: dict[str, bytes], layout: int
    ) -> None:
        path = tmp_path / "slide.tar"
        try:
            write_tar_members(path, files, layout)
        except ValueError:  # a name too long for ustar
            return
        assert contents(path) == by_tarfile(path) == files

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("name", ["f" * 90 + "/" + "n" * 90 + ".png", "ä" * 48 + ".png"])
    def test_long_and_foreign_names(self, tmp_path: Path, layout: int, name: str) -> None:
        path = write_tar_members(tmp_path / "slide.tar", {name: PNG, "b.png": PNG}, layout)
        assert read_all(path).cell_id == sorted([name, "b.png"])

    @pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_a_name_beyond_what_a_header_holds(self, tmp_path: Path, layout: int) -> None:
        name = "x" * 300 + ".png"
        path = write_tar_members(tmp_path / "slide.tar", {name: PNG}, layout)
        assert contents(path) == {name: PNG}

    def test_a_v7_tar_has_no_magic_and_folders_by_their_slash(self, tmp_path: Path) -> None:
        old = {"magic": b"", "kind": b"\0"}
        path = tar(tmp_path, member(b"sub/", b"", **old), member(b"sub/a.png", **old))
        assert contents(path) == by_tarfile(path) == {"sub/a.png": PNG}

    def test_a_prefix_counts_in_posix_headers_alone(self, tmp_path: Path) -> None:
        gnu = {"magic": b"ustar  \0", "prefix": b"14723456701"}  # an access time
        path = tar(tmp_path, member(b"a.png", prefix=b"sub"), member(b"b.png", **gnu))
        assert sorted(contents(path)) == ["b.png", "sub/a.png"]

    def test_a_sum_of_signed_bytes_is_taken(self, tmp_path: Path) -> None:
        name = "zelle ä.png".encode()
        path = tar(tmp_path, member(name, signed=True), member(b"b.png"))
        assert contents(path) == by_tarfile(path)

    def test_sizes_in_base_256(self, tmp_path: Path) -> None:
        size = b"\x80" + len(PNG).to_bytes(11, "big")
        path = tar(tmp_path, header(size_field=size), padded(PNG))
        assert contents(path) == by_tarfile(path) == {"a.png": PNG}

    def test_a_name_in_a_pax_header_that_is_no_utf8(self, tmp_path: Path) -> None:
        path = tar(tmp_path, pax(b"14 path=\xff.png\n"), member(b"other"))
        assert list(contents(path)) == ["\udcff.png"]

    def test_dots_before_names_and_folders_are_passed_over(
        self, slide: Cells, tmp_path: Path
    ) -> None:
        """As `tar -cf slide.tar .` writes it."""
        path = tmp_path / "slide.tar"
        with tarfile.open(path, "w") as packed:
            for folder in (".", "./sub"):
                info = tarfile.TarInfo(folder)
                info.type = tarfile.DIRTYPE
                packed.addfile(info)
            for name, tile in zip(image_names(len(slide)), slide.tiles, strict=True):
                info = tarfile.TarInfo(f"./sub/{name}")
                data = encode(tile)
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))
        block = read_all(path)
        assert_honest(block, slide)
        assert block.readable.all()
        assert block.cell_id == [f"sub/{name}" for name in image_names(len(slide))]

    def test_of_a_webdataset_the_images_are_tiles(self, slide: Cells, tmp_path: Path) -> None:
        samples = {}
        for number, tile in enumerate(slide.tiles):
            samples[f"{number:05d}.json"] = b'{"label": 3}'
            samples[f"{number:05d}.png"] = encode(tile)
            samples[f"{number:05d}.cls"] = b"3"
        block = read_all(write_tar_members(tmp_path / "slide.tar", samples))
        assert_honest(block, slide)
        assert block.cell_id == image_names(len(slide))

    def test_what_macos_adds_is_no_tile(self, tmp_path: Path) -> None:
        names = {"a.png": PNG, "._a.png": b"\0\5\26\7", "__MACOSX/b.png": PNG}
        assert read_all(write_tar_members(tmp_path / "slide.tar", names)).cell_id == ["a.png"]

    def test_small_members_behind_large_ones(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        sizes = [0, 1, 511, 512, 513, 3 * MIB, 10, MIB // 4, MIB, 7]
        files = {f"{n:02d}": rng.bytes(size) for n, size in enumerate(sizes)}
        path = write_tar_members(tmp_path / "slide.tar", files)
        assert contents(path) == files

    def test_parts_of_members(self, tmp_path: Path) -> None:
        path = write_tar_members(tmp_path / "slide.tar", {"a": b"0123456789", "b": b"x"})
        with closing(TarMembers(DiskPlace.of(path))) as members:
            assert members.read_at(0, 3, 4) == b"3456"
            assert members.read_at(0, 8, 100) == b"89"
            assert members.read_at(0, 20, 5) == b""


class TestNotWhole:
    def test_a_cut_shows_wherever_it_is(self, slide: Cells, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "slide.tar", Cells(slide.tiles[:3], slide.xy[:3], []))
        whole = path.read_bytes()
        with tarfile.open(path) as packed:
            last = packed.getmembers()[-1]
        end = last.offset_data + len(padded(bytes(last.size)))
        for size in [*range(0, end + BLOCK, 97), end, end + BLOCK - 1]:
            path.write_bytes(whole[:size])
            with pytest.raises(BadFormatError, match=r"slide\.tar is not a whole tar"):
                describe(path)
        path.write_bytes(whole[: end + BLOCK])
        assert describe(path).tiles == 3

    @pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_a_name_without_its_member(self, tmp_path: Path, layout: int) -> None:
        path = write_tar_members(tmp_path / "slide.tar", {"x" * 300: PNG}, layout)
        told = path.read_bytes()[: 2 * BLOCK]
        with pytest.raises(BadFormatError, match="a member that is not there"):
            describe(tar(tmp_path, told))

    def test_a_copy_with_its_room_taken_beforehand(self, tmp_path: Path) -> None:
        path = tar(tmp_path, member(), end=bytes(2 * MIB))
        with pytest.raises(BadFormatError, match="still being copied"):
            describe(path)

    @pytest.mark.parametrize("rest", [member(b"b.png"), b"x", b"\0" * 5000 + b"x"])
    def test_what_follows_the_end_is_refused(self, tmp_path: Path, rest: bytes) -> None:
        with pytest.raises(BadFormatError, match="behind the end"):
            describe(tar(tmp_path, member(), END, rest))

    def test_padding_is_taken(self, tmp_path: Path) -> None:
        assert describe(tar(tmp_path, member(), end=bytes(MIB - 100))).tiles == 1

    @pytest.mark.parametrize("content", [b"", b"short", PNG, b"no tar file" * 100])
    def test_a_foreign_file_is_bad_format(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(BadFormatError, match=r"slide\.tar is (no|not a whole) tar"):
            describe(tar(tmp_path, content, end=b""))

    @pytest.mark.parametrize(
        ("compress", "suffix", "command"),
        [
            (gzip.compress, "gz", "gzip -d"),
            (bz2.compress, "bz2", "bzip2 -d"),
            (lzma.compress, "xz", "xz -d"),
            (lambda data: b"\x28\xb5\x2f\xfd" + data, "zst", "zstd -d"),
        ],
    )
    def test_a_compressed_tar_is_told_how_to_unpack(
        self, slide: Cells, tmp_path: Path, compress: object, suffix: str, command: str
    ) -> None:
        path = write_tar(tmp_path / "slide.tar", slide)
        packed = tmp_path / f"slide.tar.{suffix}"
        packed.write_bytes(compress(path.read_bytes()))  # type: ignore[operator]
        with pytest.raises(BadFormatError, match=f"compressed.*`{command}`"):
            describe(packed)

    def test_a_tar_without_an_image_is_empty(self, tmp_path: Path) -> None:
        for path in (tar(tmp_path), tar(tmp_path, member(b"notes.txt"))):
            with pytest.raises(EmptyArchiveError, match="holds no image"):
                describe(path)
