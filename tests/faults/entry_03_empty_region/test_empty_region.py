"""Damaged: a stored tile of a whole slide that is empty, which reads as transparent.

Expected: ``incomplete``, ``unreadable_tiles``, exit code 3; the cells that touch it count
as unreadable, not as black ones.
"""

from __future__ import annotations

import numpy as np

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from tests.archives.making import write_table
from tests.archives.wsi_making import empty_tile, write_tiff
from tests.faults.night import Expected, Night

EXPECTED = Expected(Status.INCOMPLETE, Reason.UNREADABLE_TILES)


def test_stored_tile_that_is_empty(night: Night) -> None:
    pixels = np.full((512, 512, 3), 200, np.uint8)
    path = write_tiff(night.slides / "slide.tif", pixels, tile=256, levels=1)
    empty_tile(path, 0)
    centres = [(100, 100), (256, 256), (400, 100), (400, 400)]
    write_table(
        night.slides / "slide.cells.csv",
        {
            "x": [x for x, _ in centres],
            "y": [y for _, y in centres],
            "width": [40] * 4,
            "height": [40] * 4,
        },
    )
    row = night.submit().assert_ends("slide.tif", EXPECTED)
    assert (row["cells_classified"], row["cells_unreadable"]) == (2, 2)
    assert sum(row["counts_at_least"].values()) == 2
