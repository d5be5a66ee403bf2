"""Tar files that are damaged or made to do harm."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvm_batch.archives.limits import MAX_MEMBER_BYTES, MIB
from cvm_batch.archives.members import tar_directory
from cvm_batch.errors import BadFormatError, OverLimitError, SlideError, UnsafeArchiveError
from tests.archives.making import cells, write_tar, write_tar_members
from tests.archives.reading import describe, read_all
from tests.archives.tar_making import (
    BLOCK,
    END,
    LAYOUTS,
    PNG,
    by_tarfile,
    contents,
    header,
    member,
    pax,
    record,
    tar,
)


class TestDamage:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_flipped_bit_in_a_header_is_taken(self, tmp_path: Path, layout: int) -> None:
        """All but the sum's own blanks count; a bit of them changes nothing either."""
        files = {"a.png": PNG, "b" * 90 + ".png": PNG}
        path = write_tar_members(tmp_path / "slide.tar", files, layout)
        whole = path.read_bytes()
        refused = 0
        for at in range(0, 8 * BLOCK, 11):
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(damaged)
            try:
                assert contents(path) == files
            except SlideError:
                refused += 1
        assert refused > 8 * BLOCK // 11 - 4

    @pytest.mark.parametrize("size", [b"12a\0", b"\xff" * 12, b"-1\0", b"9\0"])
    def test_a_size_that_is_none(self, tmp_path: Path, size: bytes) -> None:
        with pytest.raises(BadFormatError, match="header"):
            describe(tar(tmp_path, member(b"b.png"), header(size_field=size)))

    @pytest.mark.parametrize("size", [8**11 - 1, 8**10])
    def test_a_size_beyond_the_file(self, tmp_path: Path, size: int) -> None:
        with pytest.raises(BadFormatError, match=r"ends in the middle of 'a\.png'"):
            describe(tar(tmp_path, header(size=size)))

    @pytest.mark.parametrize(
        "records", [b"x", b"9 path", b"5 a=b\n", b"99 path=a\n", b"0 \n", b"8 pathb\n"]
    )
    def test_a_pax_header_that_cannot_be_read(self, tmp_path: Path, records: bytes) -> None:
        with pytest.raises(BadFormatError, match="pax header at byte 0 that cannot be read"):
            describe(tar(tmp_path, pax(records), member()))

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(parts=st.lists(st.tuples(st.sampled_from("0567xgLKSV"), st.binary(max_size=600))))
    def test_any_sequence_of_headers_ends_in_members_or_a_slide_error(
        self, tmp_path: Path, parts: list[tuple[str, bytes]]
    ) -> None:
        blocks = [
            member(b"%d" % n, data, kind=kind.encode()) for n, (kind, data) in enumerate(parts)
        ]
        # tarfile takes no tar that begins or ends with a header of none.
        path = tar(tmp_path, member(b"first"), *blocks, member(b"last"))
        try:
            found = contents(path)
        except SlideError:
            return
        assert found == by_tarfile(path)


class TestHostile:
    @pytest.mark.parametrize(
        "kind", [*b"12346", *b"K", *b"S", *b"V", *b"M", *b"D", *b"A", *b"N", 0x80]
    )
    def test_what_is_no_plain_file_is_refused(self, tmp_path: Path, kind: int) -> None:
        path = tar(tmp_path, member(), member(b"b.png", b"", kind=bytes([kind])))
        with pytest.raises(UnsafeArchiveError, match=r"slide\.tar holds at byte \d+ a"):
            describe(path)

    def test_a_pax_sparse_file_is_refused(self, tmp_path: Path) -> None:
        records = record("GNU.sparse.major", "1") + record("GNU.sparse.name", "a.png")
        with pytest.raises(UnsafeArchiveError, match="sparse"):
            describe(tar(tmp_path, pax(records), member()))

    @pytest.mark.parametrize("name", ["../up.png", "a/../../b.png", "/etc/a.png", "C:/a", "a\\b"])
    @pytest.mark.parametrize("told", ["header", "pax", "gnu"])
    def test_names_that_reach_outside_are_refused(
        self, tmp_path: Path, name: str, told: str
    ) -> None:
        encoded = name.encode()
        parts = {
            "header": [member(encoded)],
            "pax": [pax(record("path", name)), member()],
            "gnu": [member(b"././@LongLink", encoded + b"\0", kind=b"L"), member()],
        }
        with pytest.raises(UnsafeArchiveError, match="absolute names"):
            describe(tar(tmp_path, *parts[told]))

    def test_a_folder_that_reaches_outside_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsafeArchiveError, match="absolute names"):
            describe(tar(tmp_path, member(), member(b"../sub", b"", kind=b"5")))

    def test_a_name_with_a_nul_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsafeArchiveError, match="NULs"):
            describe(tar(tmp_path, pax(record("path", "a.png\0.txt")), member()))

    @pytest.mark.parametrize("second", [b"a.png", b"./a.png", b".//a.png"])
    def test_duplicates_are_refused(self, tmp_path: Path, second: bytes) -> None:
        with pytest.raises(UnsafeArchiveError, match=r"two members named 'a\.png'"):
            describe(tar(tmp_path, member(), member(second)))

    def test_two_sizes_for_one_member_are_refused(self, tmp_path: Path) -> None:
        """Else a tar could hold other members for one reader than for another."""
        hidden = member(b"hidden.png") + END
        path = tar(tmp_path, pax(record("size", str(len(hidden)))), header(), hidden)
        with pytest.raises(UnsafeArchiveError, match="nothing says which"):
            describe(path)

    def test_a_size_that_only_pax_can_tell_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "slide.tar"
        size = 8**11 + 5
        with path.open("wb") as file:  # sparse: takes no room
            file.write(member(b"a.png") + pax(record("size", str(size))) + header(b"big.svs"))
            file.seek(-(-size // BLOCK) * BLOCK, io.SEEK_CUR)
            file.write(member(b"b.png") + END)
        assert read_all(path).cell_id == ["a.png", "b.png"]

    @pytest.mark.parametrize(
        "told",
        [
            [pax(record("path", "b.png")), member(b"L", b"c.png\0", kind=b"L")],
            [pax(record("path", "b.png")), pax(record("path", "b.png"))],
            [pax(record("path", "b.png"), kind=b"g")],
        ],
    )
    def test_names_told_more_than_once_are_refused(self, tmp_path: Path, told: list[bytes]) -> None:
        with pytest.raises(UnsafeArchiveError, match="told more than once"):
            describe(tar(tmp_path, *told, member()))

    def test_global_headers_that_only_comment_are_passed_over(self, tmp_path: Path) -> None:
        """As git writes them."""
        path = tar(tmp_path, pax(record("comment", "c0ffee"), kind=b"g"), member())
        assert contents(path) == {"a.png": PNG}

    @pytest.mark.parametrize("name", [b"sub/", b"sub"])
    def test_a_folder_with_content_is_refused(self, tmp_path: Path, name: bytes) -> None:
        kind = b"0" if name.endswith(b"/") else b"5"
        with pytest.raises(UnsafeArchiveError, match="folder"):
            describe(tar(tmp_path, member(), member(name, PNG, kind=kind)))

    def test_too_many_members_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_tar(tmp_path / "slide.tar", cells(23))
        monkeypatch.setattr(tar_directory, "MAX_MEMBERS", 22)
        with pytest.raises(OverLimitError, match="more than the 22 members"):
            describe(path)

    def test_endless_names_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(OverLimitError, match="more than the 1048576"):
            describe(tar(tmp_path, pax(b"x" * (MIB + 1)), member()))
        monkeypatch.setattr(tar_directory, "MAX_DIRECTORY_BYTES", 100)
        with pytest.raises(OverLimitError, match="more than 100 bytes of long names"):
            describe(tar(tmp_path, pax(record("comment", "x" * 100)), member()))

    def test_a_giant_member_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "slide.tar"
        size = MAX_MEMBER_BYTES + 1
        with path.open("wb") as file:  # sparse: takes no room
            file.write(header(b"a.png", size))
            file.seek(-(-size // BLOCK) * BLOCK, io.SEEK_CUR)
            file.write(END)
        with pytest.raises(OverLimitError, match=rf"a\.png.*{size} bytes"):
            read_all(path)
