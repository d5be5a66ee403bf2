"""How large a pixel is, and whether that is what the model was trained with."""

from __future__ import annotations

from cvm_batch.archives.opening import OpenOptions
from cvm_batch.errors import BadScaleError

#: A tile this much larger or smaller than those of the training is another magnification.
TOLERANCE = 0.10

#: Microns per pixel of a microscope slide: beyond 100x oil immersion, and below 2x.
LEAST_MPP, MOST_MPP = 0.02, 5.0


def sensible(mpp: tuple[float, float]) -> bool:
    """Whether microns per pixel (x, y) can be those of a microscope slide."""
    return all(LEAST_MPP <= axis <= MOST_MPP for axis in mpp)


def check_tile_size(
    tile_px: tuple[int, int], mpp: tuple[float, float] | None, options: OpenOptions, where: object
) -> None:
    """Raise BadScaleError where ready tiles (height, width) show another field than trained on."""
    if mpp is None or options.tile_um is None:
        return
    (height, width), (mpp_x, mpp_y) = tile_px, mpp
    for axis, um in (("wide", width * mpp_x), ("high", height * mpp_y)):
        if abs(um / options.tile_um - 1) > TOLERANCE:
            raise BadScaleError(
                f"{where} has tiles {um:.1f} um {axis}, by {mpp_x:g} x {mpp_y:g} um per pixel; the "
                f"model was trained on {options.tile_um:g} um. Crop the cells at that size, or "
                "give --mpp if the recorded scale is wrong."
            )
