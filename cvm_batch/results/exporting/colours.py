"""A colour for each class, the same in QuPath and in reports."""

from __future__ import annotations

import colorsys
from hashlib import sha256

#: Warm for what a laboratory counts, the darker the graver; cold for what it does not.
_CLASSES = {
    "SCC": (122, 1, 61),
    "HSIL": (200, 24, 24),
    "ASC-H": (232, 86, 10),
    "LSIL": (245, 145, 30),
    "ASC-US": (250, 200, 40),
    "Koilocytotic": (190, 120, 60),
    "Dyskeratotic": (200, 80, 160),
    "NILM": (30, 150, 90),
    "Metaplastic": (20, 150, 160),
    "Parabasal": (60, 110, 200),
    "Superficial-Intermediate": (110, 180, 230),
}


def colour_of(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a class, 0 to 255; a class of another vocabulary has its own, too."""
    if name in _CLASSES:
        return _CLASSES[name]
    hue = sha256(name.encode("utf-8", "surrogatepass")).digest()[0] / 256
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.7, 0.8))
    return red, green, blue
