"""Short ways to pack slides in tests, and to compare what came of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvm_batch.archives.archive import TileBlock
from cvm_batch.archives.discovery import discover
from cvm_batch.archives.opening import PLAIN, OpenOptions
from cvm_batch.archives.packing import pack as packing
from cvm_batch.archives.packing.pack import NotPacked, Outcome, Packed, pack_slides
from cvm_batch.isolation import Done, Failed


def pack_all(
    sources: Path, out: Path, options: OpenOptions = PLAIN, **settings: Any
) -> dict[str, Outcome]:
    """What became of each slide under ``sources``, by slide_id."""
    outcomes = pack_slides(discover([str(sources)]).slides, options, out, **settings)
    with closing(outcomes):
        return {outcome.slide.slide_id: outcome for outcome in outcomes}


def packed(outcome: Outcome) -> Packed:
    assert isinstance(outcome, Packed), outcome.error
    return outcome


def not_packed(outcome: Outcome) -> NotPacked:
    assert isinstance(outcome, NotPacked)
    return outcome


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there; what is hidden in it is left out."""
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    hidden = {name for name in files if any(part.startswith(".") for part in name.parts)}
    return {str(name): file.read_bytes() for name, file in files.items() if name not in hidden}


def leftovers(out: Path) -> list[Path]:
    """The folders of slides that are not packed to their end."""
    return sorted(out.rglob(".*.partial"))


def assert_same(block: TileBlock, other: TileBlock) -> None:
    """The same tiles, wherever they are from."""
    assert len(block) == len(other)
    np.testing.assert_array_equal(block.readable, other.readable)
    for position in np.flatnonzero(block.readable).tolist():
        np.testing.assert_array_equal(block.tiles[position], other.tiles[position])
    assert (block.xy is None) == (other.xy is None)
    if block.xy is not None and other.xy is not None:
        np.testing.assert_array_equal(block.xy, other.xy)
    assert block.cell_id == other.cell_id
    assert _padded(block) == _padded(other)


def _padded(block: TileBlock) -> list[int]:
    return [] if block.padded is None else np.flatnonzero(block.padded).tolist()


def run_here(
    function: Callable[[Any], Any], items: Iterable[Any], **_: Any
) -> Generator[Done[Any, Any] | Failed[Any], None, None]:
    """Stands in for `run_isolated`: quick, and what a test patches reaches it."""
    for item in items:
        try:
            yield Done(item, function(item))
        except Exception as error:
            yield Failed(item, error)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides are packed in this process."""
    monkeypatch.setattr(packing, "run_isolated", run_here)
