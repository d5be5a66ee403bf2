"""From an encoded image to RGB pixels.

What is converted, and how:
- palette, grey, black-and-white, YCbCr and CMYK as Pillow converts them, without colour
  profiles, since the model was trained without them;
- 16-bit grey is divided by 257, so that 65535 becomes 255;
- EXIF orientation is applied;
- an alpha channel that is opaque everywhere is dropped. Any transparent pixel makes the
  tile unreadable: what colour lies behind it is not known;
- of several frames or pages, the first is the tile.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from cvm_batch.archives.limits import MAX_TILE_PIXELS
from cvm_batch.errors import OverLimitError

#: Decoders that may be tried, whatever the name's suffix says.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


class UndecodableError(ValueError):
    """These bytes are no image that can be shown to the model."""


def decode(data: bytes, where: str) -> NDArray[np.uint8]:
    """RGB pixels uint8 [h, w, 3] of an encoded image.

    Raises UndecodableError, or OverLimitError from the header, before pixels are decoded.
    """
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size, where)
            return _rgb(_upright(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OverLimitError(f"{where} is refused by its header: {error}") from error
    except (OverLimitError, UndecodableError, MemoryError):
        raise
    except Exception as error:
        # Damaged images make decoders raise anything from IndexError to SyntaxError.
        raise UndecodableError(f"{error or type(error).__name__}") from error


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width * height > MAX_TILE_PIXELS:
        raise OverLimitError(
            f"{where} says it has {width} x {height} pixels, more than the {MAX_TILE_PIXELS} "
            "of a tile. Give crops of single cells; whole fields and slides have readers of "
            "their own."
        )


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


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
