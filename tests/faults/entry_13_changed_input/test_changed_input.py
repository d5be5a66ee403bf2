"""Damaged: an input that changes between runs, or while it is read.

Expected: between runs, it is classified anew, never skipped; during a run ``failed``,
``input_changed``, exit code 3, and the next run classifies it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.archives.images.archive import ImageArchive
from cvm_batch.errors import ExitCode, Reason
from cvm_batch.results.schemas import Status
from cvm_batch.screening import shelf
from tests.archives.contract import touch
from tests.archives.making import image_names, write_folder, write_table, write_zip
from tests.faults.night import CELLS, Expected, Night, slide_of


def test_slide_that_is_written_anew(night: Night) -> None:
    path = write_zip(night.slides / "slide.zip", slide_of().tiles)
    first = night.submit().rows["slide.zip"]
    path.unlink()
    write_zip(path, slide_of().tiles[:5])
    found = night.submit()
    assert found.exit_code is ExitCode.COMPLETE
    second = found.rows["slide.zip"]
    assert (second["cells_classified"], first["cells_classified"]) == (5, CELLS)
    assert second["result_key"] != first["result_key"]


def test_cells_table_that_changes(night: Night) -> None:
    write_folder(night.slides / "slide", slide_of().tiles)
    first = night.submit().rows["slide"]
    write_table(night.slides / "slide.cells.csv", {"file": image_names(CELLS + 1)})
    row = night.submit().assert_ends("slide", Expected(Status.INCOMPLETE, Reason.MISSING_TILES))
    assert row["result_key"] != first["result_key"]


def test_slide_that_changes_while_it_is_read(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here after its last tile was read: tiles of a changed file are refused one by one."""
    path: Path = write_folder(night.slides / "slide", slide_of(CELLS + 1).tiles)
    read = ImageArchive.read

    def read_and_touch(archive: ImageArchive, start: int, stop: int) -> Any:
        block = read(archive, start, stop)
        if stop == CELLS + 1:  # its neighbour has no such tile, and it may be read in two parts
            touch(path / "00003.png")
        return block

    with monkeypatch.context() as patch:
        patch.setattr(ImageArchive, "read", read_and_touch)
        # On a machine that stands still for a moment a look would seem dear, and be made seldom.
        patch.setattr(shelf, "_CHEAP_CHECK_SECONDS", math.inf)
        night.submit().assert_ends("slide", Expected(Status.FAILED, Reason.INPUT_CHANGED))
    found = night.submit()
    assert found.exit_code is ExitCode.COMPLETE
    assert found.rows["slide"]["status"] == Status.COMPLETE
