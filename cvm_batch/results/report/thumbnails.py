"""Cells' tiles as pictures that lie in the page itself, so that it loads nothing."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:  # there is no wheel of it for every machine
    simplejpeg = None

#: A page holds twenty; the tiles themselves stay in tops/. At this quality, and with the colours
#: at full resolution, no difference is seen beside the PNG, which is ten times as large.
_QUALITY = 85
#: Longest side. Crops of 50 um at 0.25 um a pixel have 200.
MOST_PX = 160


@dataclass(frozen=True)
class Thumbnail:
    url: str
    """A data URL of a JPEG."""
    width: int
    height: int


def thumbnail(png: bytes, most_px: int = MOST_PX) -> Thumbnail | None:
    """Of a tile as it lies in tops/; None where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            tile = image.convert("RGB") if image.mode != "RGB" else image
            if max(tile.size) > most_px:
                tile.thumbnail((most_px, most_px), Image.Resampling.BILINEAR)
            pixels = np.asarray(tile)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    jpeg = _jpeg(np.ascontiguousarray(pixels))
    height, width, _ = pixels.shape
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    return Thumbnail(url, width, height)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    if simplejpeg is not None:  # in half the time
        jpeg: bytes = simplejpeg.encode_jpeg(
            pixels, _QUALITY, colorspace="RGB", colorsubsampling="444"
        )
        return jpeg
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
