"""A slide's cells for QuPath: drag the file onto the slide, and they lie where they are.

Coordinates are level-0 pixels. Each cell is a detection with its class, the class's colour,
and its confidence as a measurement, by which QuPath can show and hide them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pyarrow as pa

from cvm_batch.errors import UsageError
from cvm_batch.results.exporting.colours import colour_of

_COLUMNS = ("index", "cell_id", "x", "y", "class", "confidence", "p_primary")
#: As objects of Python's, which take more memory than in a table.
_ROWS_AT_ONCE = 10_000


@dataclass(kw_only=True)
class GeoJson:
    """Which cells are written, and how; raises UsageError at construction."""

    slide_id: str
    classes: Collection[str] | None = None
    """None: of all classes."""
    least_confidence: float = 0.0
    box_px: float | None = None
    """Side of a square around each nucleus in level-0 pixels; None: a point."""
    written: int = 0
    without_position: int = 0
    """Cells left out, since it is not known where they lie."""

    def __post_init__(self) -> None:
        if not 0 <= self.least_confidence <= 1:
            raise UsageError(f"--least-confidence must be 0 to 1, not {self.least_confidence:g}.")
        if self.box_px is not None and not 0 < self.box_px < float("inf"):
            raise UsageError(f"--box must be pixels above 0, not {self.box_px:g}.")

    def lines(self, cells: pa.Table) -> Iterator[str]:
        """The file, a line per cell; ``cells`` has the columns of cells or of tops."""
        yield '{"type": "FeatureCollection", "features": [\n'
        for batch in cells.select(_COLUMNS).to_batches(max_chunksize=_ROWS_AT_ONCE):
            for cell in batch.to_pylist():
                if not self._wanted(cell):
                    continue
                if cell["x"] is None or cell["y"] is None:
                    self.without_position += 1
                    continue
                before = ",\n" if self.written else ""
                yield before + json.dumps(self._feature(cell), allow_nan=False)
                self.written += 1
        yield "\n]}\n"

    def _wanted(self, cell: dict[str, Any]) -> bool:
        of_class = self.classes is None or cell["class"] in self.classes
        return of_class and cell["confidence"] >= self.least_confidence

    def _feature(self, cell: dict[str, Any]) -> dict[str, Any]:
        name = cell["cell_id"] if cell["cell_id"] is not None else f"#{cell['index']}"
        measurements = {"confidence": round(cell["confidence"], 4)}
        if cell["p_primary"] is not None:
            measurements["p_primary"] = round(cell["p_primary"], 4)
        return {
            "type": "Feature",
            # The same cell has the same one in each export, which QuPath merges by.
            "id": str(uuid5(NAMESPACE_URL, f"{self.slide_id}\0{cell['index']}")),
            "geometry": self._geometry(cell["x"], cell["y"]),
            "properties": {
                "objectType": "detection",
                "name": name,
                "classification": {"name": cell["class"], "color": colour_of(cell["class"])},
                "measurements": measurements,
            },
        }

    def _geometry(self, x: float, y: float) -> dict[str, Any]:
        if self.box_px is None:
            return {"type": "Point", "coordinates": [x, y]}
        left, top = x - self.box_px / 2, y - self.box_px / 2
        right, bottom = x + self.box_px / 2, y + self.box_px / 2
        # QuPath's y points down: this ring is closed and clockwise on the screen.
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        return {"type": "Polygon", "coordinates": [ring]}
