"""From an encoded image to RGB pixels.

What is converted, and how:
- palette, grey, black-and-white, YCbCr and CMYK as Pillow converts them, without colour
  profiles, since the model was trained without them;
- 16-bit grey is divided by 257, so that 65535 becomes 255. Of 16-bit colour, and of grey with
  an alpha channel, Pillow hands out the upper byte of each value, which differs by one at most;
- values without a stated range make a tile unreadable: 12-bit, 32-bit, signed and floating
  point, and 16-bit where zero is white;
- EXIF orientation is applied;
- an alpha channel that is opaque everywhere is dropped. Any transparent pixel makes the
  tile unreadable: what colour lies behind it is not known;
- of several frames or pages, the first is the tile.

What damage is found: any in a PNG, by its checksums; in the others what does not decode. A
JPEG is held to libjpeg's warnings as well, of data that are missing or left over. Damage that
still decodes shows by the checksums of a zip or by a recorded digest alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from zlib_ng import zlib_ng

from cvm_batch.archives.limits import MAX_TILE_PIXELS
from cvm_batch.errors import OverLimitError

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:  # there is no wheel of it for every machine, and Pillow decodes as well
    simplejpeg = None

#: Decoders that may be tried, whatever the name's suffix says.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")

_JPEG_START = b"\xff\xd8\xff"
_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")
#: What a JPEG with an orientation holds, in EXIF or XMP. Others need no look at either.
_TURNED_MARKS = (b"Exif\0", b"tiff:Orientation")

_PNG_START = b"\x89PNG\r\n\x1a\n"

_UNSIGNED, _WHITE_IS_ZERO = 1, 0
_TIFF_BITS = (1, 2, 4, 8, 16)

#: EXIF orientations and what brings pixels [h, w, 3] upright.
_TURNS: Mapping[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: np.fliplr,
    3: partial(np.rot90, k=2),
    4: np.flipud,
    5: partial(np.swapaxes, axis1=0, axis2=1),
    6: partial(np.rot90, k=-1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


class UndecodableError(ValueError):
    """These bytes are no image that can be shown to the model."""


def decode(data: bytes, where: str, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """RGB pixels uint8 [h, w, 3] of an encoded image.

    ``into``, where it has the image's shape, may be what is handed back, to spare a copy; it
    is overwritten in any case. Raises UndecodableError, or OverLimitError from the header,
    before pixels are decoded.
    """
    try:
        pixels = _decode_jpeg(data, where, into)
        return _decode_any(data, where) if pixels is None else pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OverLimitError(f"{where} is refused by its header: {error}") from error
    except (OverLimitError, UndecodableError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UndecodableError("it is no image of a known format") from error
    except Exception as error:
        # Damaged images make decoders raise anything from IndexError to SyntaxError.
        raise UndecodableError(f"{error or type(error).__name__}") from error


def _decode_jpeg(
    data: bytes, where: str, into: NDArray[np.uint8] | None
) -> NDArray[np.uint8] | None:
    """As `decode`, four times as fast as Pillow; None for what is left to it."""
    if simplejpeg is None or not data.startswith(_JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size((width, height), where)
    if colours not in _JPEG_COLOURS:
        return None
    # Exact transform and smooth upsampling: the pixels are Pillow's.
    if into is None or into.shape != (height, width, 3):
        into = np.empty((height, width, 3), np.uint8)
    simplejpeg.decode_jpeg(
        data, colorspace="RGB", fastdct=False, fastupsample=False, strict=True, buffer=into
    )
    if not any(mark in data for mark in _TURNED_MARKS):
        return into
    with Image.open(BytesIO(data), formats=["JPEG"]) as image:
        return _upright(into, image)


def _decode_any(data: bytes, where: str) -> NDArray[np.uint8]:
    with Image.open(BytesIO(data), formats=_FORMATS) as image:
        _check_size(image.size, where)
        if image.format == "PNG":
            _check_chunks(data)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_samples(image)
        # TIFFs are upright once they are loaded, and say so.
        image.load()
        return _upright(_rgb(image), image)


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width * height > MAX_TILE_PIXELS:
        raise OverLimitError(
            f"{where} says it has {width} x {height} pixels, more than the {MAX_TILE_PIXELS} "
            "of a tile. Give crops of single cells; whole fields and slides have readers of "
            "their own."
        )


def _check_chunks(data: bytes) -> None:
    """Raise UndecodableError unless every checksum of a PNG is right.

    Pillow passes over those of the pixels, and zlib's own lies behind the last row, where
    it stops reading.
    """
    view, at, kind = memoryview(data), len(_PNG_START), b""
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        if end + 4 > len(data):
            raise UndecodableError("it is cut short")
        kind = data[at + 4 : at + 8]
        if zlib_ng.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise UndecodableError(f"bad CRC-32 of its chunk {kind!r}")
        at = end + 4


def _check_samples(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raise UndecodableError for values that Pillow takes for others than they are."""
    tags = image.tag_v2
    kinds = set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (_UNSIGNED,)))
    bits = set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    if kinds != {_UNSIGNED} or not bits <= set(_TIFF_BITS) or (white_is_zero and 16 in bits):
        raise UndecodableError(f"pixels of {max(bits)} bits have no stated range of values")


def _upright(pixels: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        image = _without_alpha(image)
    if image.mode in _GREY_16:
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode not in _MODES:
        raise UndecodableError(f"pixels of kind {image.mode} have no stated range of values")
    return np.array(image.convert("RGB"))


def _without_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        raise UndecodableError("it has transparent pixels, and what lies behind is not known")
    return image.convert("RGB")
