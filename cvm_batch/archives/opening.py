"""What opening a slide takes: its place, and what the run says of all slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cvm_batch.archives.places.place import Place


@dataclass(frozen=True, kw_only=True)
class ArrayNames:
    """Under which names a zarr group holds what."""

    tiles: str = "tiles"
    size: str = "size"
    xy: str = "xy"
    cell_id: str = "cell_id"


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a run reads its slides. Plain data that pickles."""

    tile_um: float | None = None
    """Side in microns of the tiles that the model was trained with, where it is known."""
    least_px: int = 0
    """Pixels a side that the model takes: whole slides are read at no coarser a level."""
    mpp: tuple[float, float] | None = None
    """Microns per level-0 pixel, x and y, in place of what the slides say of themselves."""
    arrays: ArrayNames = field(default_factory=ArrayNames)

    def decisive(self) -> Mapping[str, Any]:
        """What of this decides results beyond the bundle: a part of the result key."""
        return {"mpp": self.mpp, "arrays": asdict(self.arrays)}


#: Slides as they describe themselves, for a model that knows no scale.
PLAIN = OpenOptions()


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One slide about to be opened."""

    place: Place
    cells: Place | None = None
    """The cells table, where a manifest names one."""
    options: OpenOptions = PLAIN
