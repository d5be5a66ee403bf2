"""Which pixels become of which image, and what is no image."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cvm_batch.archives.images import decoding
from cvm_batch.archives.images.decoding import UndecodableError, decode
from cvm_batch.archives.limits import MAX_TILE_PIXELS
from cvm_batch.errors import OverLimitError
from tests.archives.making import cells, encode, write_zip_members
from tests.archives.reading import read_all

SUFFIXES = [".png", ".jpg", ".bmp", ".tif", ".webp"]
LOSSLESS = [".png", ".bmp", ".tif", ".webp"]
TILE = cells(1, px=(40, 36)).tiles[0]


def packed(image: Image.Image, suffix: str, **known: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[suffix], **known)
    return file.getvalue()


def tiff(pixels: NDArray[Any], **known: Any) -> bytes:
    """As scanners' own programs write it: more kinds than Pillow does."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **known)
    return file.getvalue()


def png(pixels: NDArray[np.uint16], colour: int) -> bytes:
    """A PNG of 16 bits; Pillow writes grey ones alone. ``colour``: 0 grey, 2 RGB, 4 LA, 6 RGBA."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def pillow_only(data: bytes, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "simplejpeg", None)
        return decode(data, "x")


class TestColours:
    @pytest.mark.parametrize("suffix", LOSSLESS)
    def test_lossless_formats_keep_every_pixel(self, suffix: str) -> None:
        known = {"lossless": True, "exact": True} if suffix == ".webp" else {}
        np.testing.assert_array_equal(decode(encode(TILE, suffix, **known), "x"), TILE)

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_lossy_formats_come_close(self, suffix: str) -> None:
        smooth = np.full((16, 16, 3), (180, 120, 200), np.uint8)
        found = decode(encode(smooth, suffix), "x")
        assert np.abs(found.astype(int) - smooth).max() <= 3

    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
    def test_a_palette_is_looked_up(self, suffix: str) -> None:
        colours = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8))
        image = colours.convert("P", palette=Image.Palette.ADAPTIVE)
        assert decode(packed(image, suffix), "x").tolist() == [[[255, 0, 0], [0, 255, 0]]]

    @pytest.mark.parametrize(
        ("mode", "suffix"),
        [("L", ".jpg"), *product(["1", "L"], [".png", ".bmp", ".tif"])],
    )
    def test_grey_becomes_three_equal_channels(self, suffix: str, mode: str) -> None:
        grey = np.zeros((8, 16), np.uint8)
        grey[:, 8:] = 255
        found = decode(packed(Image.fromarray(grey).convert(mode), suffix), "x")
        np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))

    def test_cmyk_is_converted(self) -> None:
        ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
        for suffix in (".jpg", ".tif"):
            found = decode(packed(ink, suffix), "x")
            assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 5

    @pytest.mark.parametrize("write", [lambda grey: png(grey, 0), tiff])
    def test_16_bit_grey_is_divided_by_257(
        self, write: Callable[[NDArray[np.uint16]], bytes]
    ) -> None:
        grey = np.array([[0, 257, 128 * 257 + 128, 255 * 257 - 129, 65535]], np.uint16)
        found = decode(write(grey), "x")
        assert found.tolist() == [[[value] * 3 for value in (0, 1, 128, 254, 255)]]

    @pytest.mark.parametrize(
        "write", [lambda rgb: png(rgb, 2), lambda rgb: tiff(rgb, photometric="rgb")]
    )
    def test_of_16_bit_colour_the_upper_byte_is_taken(
        self, write: Callable[[NDArray[np.uint16]], bytes]
    ) -> None:
        rgb = np.array([[[0x01FF, 0x8080, 0xFFFE], [0x00FF, 0x7FFF, 0xFF00]]], np.uint16)
        assert decode(write(rgb), "x").tolist() == [[[1, 128, 255], [0, 127, 255]]]

    def test_16_bit_alpha_is_judged_as_other_alpha(self) -> None:
        rgba = np.array([[[0x01FF, 0x8080, 0xFFFE, 0xFFFF]]], np.uint16)
        assert decode(png(rgba, 6), "x").tolist() == [[[1, 128, 255]]]
        rgba[..., 3] = 0x7FFF
        with pytest.raises(UndecodableError, match="transparent"):
            decode(png(rgba, 6), "x")

    @pytest.mark.parametrize(
        ("pixels", "known"),
        [
            (np.ones((8, 8), np.int8), {}),
            (np.ones((8, 8), np.int16), {}),
            (np.ones((8, 8), np.uint32), {}),
            (np.ones((8, 8), np.float32), {}),
            (np.ones((8, 8, 3), np.float32), {"photometric": "rgb"}),
            (np.ones((8, 8), np.uint16), {"photometric": "miniswhite"}),
            (np.ones((8, 8), np.uint16), {"bitspersample": 12}),
        ],
    )
    def test_values_without_a_stated_range_are_refused(
        self, pixels: NDArray[Any], known: dict[str, Any]
    ) -> None:
        with pytest.raises(UndecodableError, match=r"no stated range|no image of a known format"):
            decode(tiff(pixels, **known), "x")

    def test_zero_may_be_white_in_8_bits(self) -> None:
        ink = np.array([[0, 55, 255]], np.uint8)
        found = decode(tiff(ink, photometric="miniswhite"), "x")
        assert found[0, :, 0].tolist() == [255, 200, 0]


class TestAlpha:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_an_opaque_channel_is_dropped(self, suffix: str, mode: str) -> None:
        image = Image.new("L", (4, 4), 77).convert(mode)
        known = {"lossless": True} if suffix == ".webp" else {}
        found = decode(packed(image, suffix, **known), "x")
        assert found.shape == (4, 4, 3)
        assert (found == 77).all()

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
    def test_one_transparent_pixel_is_refused(self, suffix: str) -> None:
        image = Image.new("RGBA", (4, 4), (9, 9, 9, 255))
        image.putpixel((2, 2), (9, 9, 9, 100))
        with pytest.raises(UndecodableError, match="transparent"):
            decode(packed(image, suffix), "x")

    def test_a_transparent_colour_is_refused(self) -> None:
        image = Image.new("RGB", (4, 4), (9, 9, 9))
        with pytest.raises(UndecodableError, match="transparent"):
            decode(packed(image, ".png", transparency=(9, 9, 9)), "x")


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(10))
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
    def test_a_turned_tile_is_brought_upright(self, suffix: str, orientation: int) -> None:
        """By the standard's words: which side row 0 and column 0 of the stored pixels are."""
        turned = np.full((16, 32, 3), 200, np.uint8)
        turned[:8, :8] = (250, 20, 20)  # where row 0 meets column 0
        exif = Image.Exif()
        exif[0x0112] = orientation
        known = {"lossless": True} if suffix == ".webp" else {"quality": 98}
        found = decode(packed(Image.fromarray(turned), suffix, exif=exif, **known), "x")
        assert found.shape == ((32, 16, 3) if orientation in (5, 6, 7, 8) else (16, 32, 3))
        corners = {2: "top right", 3: "bottom right", 4: "bottom left", 6: "top right"}
        corners |= {7: "bottom right", 8: "bottom left"}
        row, column = corners.get(orientation, "top left").split()
        corner = found[0 if row == "top" else -1, 0 if column == "left" else -1]
        assert corner[0] - int(corner[1]) > 150
        assert found.flags.c_contiguous

    def test_xmp_tells_it_too(self) -> None:
        xmp = b'<x tiff:Orientation="6"/>'
        turned = np.zeros((16, 32, 3), np.uint8)
        data = packed(Image.fromarray(turned), ".jpg", xmp=xmp)
        assert decode(data, "x").shape == (32, 16, 3)


class TestFrames:
    @pytest.mark.parametrize("suffix", [".tif", ".png", ".webp"])
    def test_the_first_is_the_tile(self, suffix: str) -> None:
        pages = [Image.fromarray(tile) for tile in cells(3).tiles]
        known = {"lossless": True} if suffix == ".webp" else {}
        data = packed(pages[0], suffix, save_all=True, append_images=pages[1:], **known)
        np.testing.assert_array_equal(decode(data, "x"), np.asarray(pages[0]))


class TestJpegDecoders:
    """Pillow's pixels, whichever decoder gives them."""

    @settings(max_examples=150, deadline=None)
    @given(
        height=st.integers(1, 70),
        width=st.integers(1, 70),
        quality=st.integers(1, 100),
        subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
        progressive=st.booleans(),
        kind=st.sampled_from(["YCbCr", "L", "RGB"]),
        smooth=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def test_both_give_the_same(
        self,
        height: int,
        width: int,
        quality: int,
        subsampling: str,
        progressive: bool,
        kind: str,
        smooth: bool,
        seed: int,
    ) -> None:
        step = 8 if smooth else 1
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (height // step + 1, width // step + 1, 3), np.uint8)
        tile = coarse.repeat(step, 0).repeat(step, 1)[:height, :width]
        image = Image.fromarray(tile).convert("L") if kind == "L" else Image.fromarray(tile)
        known = {"keep_rgb": True} if kind == "RGB" else {"subsampling": subsampling}
        data = packed(image, ".jpg", quality=quality, progressive=progressive, **known)
        with Image.open(io.BytesIO(data)) as by_pillow:
            np.testing.assert_array_equal(decode(data, "x"), np.asarray(by_pillow.convert("RGB")))

    def test_without_the_fast_one_it_is_pillow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        for known in ({}, {"exif": exif}, {"restart_marker_blocks": 2}):
            data = packed(Image.fromarray(TILE), ".jpg", **known)
            np.testing.assert_array_equal(decode(data, "x"), pillow_only(data, monkeypatch))
        with pytest.raises(UndecodableError):
            pillow_only(data[:-100], monkeypatch)

    def test_what_follows_the_end_is_no_matter(self) -> None:
        data = encode(TILE, ".jpg")
        np.testing.assert_array_equal(decode(data + b"\0" * 100, "x"), decode(data, "x"))

    def test_data_that_are_missing_are_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pillow says nothing, and half of its pixels are a guess."""
        data = packed(Image.fromarray(TILE), ".jpg", quality=90)
        middle = (data.index(b"\xff\xda") + len(data)) // 2
        damaged = data[:middle] + data[middle + 200 :]
        assert (pillow_only(damaged, monkeypatch) != decode(data, "x")).mean() > 0.3
        with pytest.raises(UndecodableError, match="Corrupt JPEG data"):
            decode(damaged, "x")


class TestDamage:
    def test_no_flipped_bit_of_a_png_gives_a_wrong_tile(self) -> None:
        data = encode(TILE[:12, :12])
        for bit in range(0, 8 * len(data), 3):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises((UndecodableError, OverLimitError)):
                decode(bytes(damaged), "x")

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_any_damage_gives_a_tile_or_an_error_of_ours(self, suffix: str) -> None:
        data = encode(TILE, suffix)
        rng = np.random.default_rng(0)
        for _ in range(200):
            damaged = bytearray(data)
            at = int(rng.integers(len(data)))
            damaged[at : at + int(rng.integers(1, 5))] = rng.bytes(2)
            try:
                found = decode(bytes(damaged), "x")
            except (UndecodableError, OverLimitError):
                continue
            assert found.dtype == np.uint8
            assert found.ndim == 3
            assert found.shape[2] == 3

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_truncated_image_is_none(self, suffix: str) -> None:
        data = encode(TILE, suffix)
        for size in range(0, len(data) - 20, 23):
            with pytest.raises(UndecodableError):
                decode(data[:size], "x")

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"II*\0" * 9])
    def test_garbage_is_no_image(self, data: bytes) -> None:
        with pytest.raises(UndecodableError):
            decode(data, "x")

    def test_other_formats_are_not_opened(self) -> None:
        with pytest.raises(UndecodableError, match="no image of a known format"):
            decode(encode(TILE, ".gif"), "x")


class TestLimits:
    def test_a_png_is_refused_from_its_header(self, tmp_path: Path) -> None:
        data = bytearray(encode(TILE))
        struct.pack_into(">II", data, 16, MAX_TILE_PIXELS, 2)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        path = write_zip_members(tmp_path / "slide.zip", {"tile.png": bytes(data)})
        with pytest.raises(OverLimitError, match=r"tile\.png.*slide\.zip"):
            read_all(path)

    @pytest.mark.parametrize("size", [(65_000, 65_000), (2049, 2048)])
    def test_a_jpeg_is_refused_from_its_header(
        self, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = bytearray(encode(TILE, ".jpg"))
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, *size)
        with pytest.raises(OverLimitError, match="x says"):
            decode(bytes(data), "x")
        with pytest.raises(OverLimitError, match=r"x says|refused by its header"):
            pillow_only(bytes(data), monkeypatch)

    def test_a_decompression_bomb_is_refused(self) -> None:
        with pytest.raises(OverLimitError, match="refused by its header"):
            decode(packed(Image.new("1", (20_000, 20_000)), ".png"), "x")


def test_a_wrong_suffix_is_no_matter(tmp_path: Path) -> None:
    """It is common and harmless."""
    members = {"a.jpg": encode(TILE), "b.png": encode(TILE, ".bmp")}
    block = read_all(write_zip_members(tmp_path / "slide.zip", members))
    np.testing.assert_array_equal(block.tiles, [TILE, TILE])
