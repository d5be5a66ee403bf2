"""Results that exports are made of: all classes, with and without places; broken slides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cvm_batch.model.bundle import Bundle
from cvm_batch.results.reading import Results
from tests.archives.making import write_table, write_zip
from tests.conftest import coloured_tiles
from tests.results.nights import HOSTILE, screened, write_slide


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    """Two runs: of a folder, and of a manifest with a column of its own."""
    folder = tmp_path_factory.mktemp("exported")
    slides, more = folder / "slides", folder / "more"
    for seed, name in enumerate(HOSTILE[:3]):
        write_slide(slides, name, seed)
    write_zip(slides / "nowhere.zip", coloured_tiles(range(5)))
    (slides / "broken.zip").write_bytes(b"PK no zip")
    screened(slides, tiny_bundle, folder / "results")
    listed = write_slide(more, "a.zarr.zip")
    (more / HOSTILE[3]).write_bytes(b"PK no zip")
    write_table(
        folder / "night.csv",
        {
            "slide_id": ["@listed", HOSTILE[3]],
            "uri": [str(listed), str(more / HOSTILE[3])],
            "=ward": ["+1", "2"],
        },
    )
    screened(folder / "night.csv", tiny_bundle, folder / "results")
    return folder / "results"


@pytest.fixture
def results(exported: Path) -> Iterator[Results]:
    with Results(exported) as opened:
        yield opened
