"""What happens: something changes between two submits that decides a result.

Expected: it is a new result key, and the slide is classified anew, exit code 0; the older row
stays as it was, and still counts for whoever submits as before.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from cvm_batch.errors import ExitCode
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.bundle import Bundle, BundleSpec, write_bundle
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.precision import Precision
from cvm_batch.screening import planning
from tests.archives.making import image_names, write_folder, write_table
from tests.conftest import coloured_tiles
from tests.faults.comparing import rows_of
from tests.faults.night import CELLS, NEIGHBOUR, Night, slide_of

CELLS_TABLE = "slide.cells.csv"


@pytest.fixture
def another_model(tmp_path: Path, tiny_spec: BundleSpec, tiny_network: CvmCervix) -> Bundle:
    """It puts each cell in the class after the one that is right."""
    network = copy.deepcopy(tiny_network)
    last = network.mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        for parameter in (last.weight, last.bias):
            parameter.copy_(parameter.roll(1, 0))
    return write_bundle(
        tmp_path / "another", tiny_spec, network, coloured_tiles(range(11)), card="# another\n"
    )


@pytest.fixture
def screened(night: Night) -> Night:
    """A night whose slides are all complete, one with a cells table."""
    write_folder(night.slides / "slide", slide_of().tiles)
    write_table(night.slides / CELLS_TABLE, {"file": image_names(CELLS)})
    assert night.submit().exit_code is ExitCode.COMPLETE
    return night


def classified_by(night: Night, **settings: Any) -> set[str]:
    """The slides that a further submit classifies. Asserts that no older row is touched."""
    before = rows_of(night.results)
    assert night.submit(**settings).exit_code is ExitCode.COMPLETE
    after = rows_of(night.results)
    assert after[: len(before)] == before
    for row in after:
        assert all((night.results / name).is_file() for name in row["cells_files"])
    keys = [(row["slide_id"], row["result_key"]) for row in after]
    assert len(set(keys)) == len(keys), "a result that stood already was made again"
    return {row["slide_id"] for row in after[len(before) :]}


def test_what_decides_results(
    screened: Night, another_model: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {"slide", NEIGHBOUR}
    for settings in ({"precision": Precision.BF16}, {"mpp": (0.3, 0.3)}):
        assert classified_by(screened, **settings) == everything, settings
    for version in ("PREPROCESSING_VERSION", "SCHEMA_VERSION"):
        with monkeypatch.context() as upgraded:
            upgraded.setattr(planning, version, getattr(planning, version) + 1)
            assert classified_by(screened) == everything, version
    assert classified_by(screened, model=str(another_model.path)) == everything
    first, *_, last = rows_of(screened.results)
    counts = [list(row["class_counts"].values()) for row in (first, last)]
    assert counts[1] == counts[0][-1:] + counts[0][:-1], "the other model's own result"
    # What stood before all this still stands, whatever runs the network.
    assert classified_by(screened, backend=Backend.COMPILED) == set()


def test_another_cells_table(screened: Night) -> None:
    table = screened.slides / CELLS_TABLE
    write_table(table, {"file": image_names(CELLS)[::-1]})
    assert classified_by(screened) == {"slide"}
    assert classified_by(screened) == set()
    table.unlink()
    assert classified_by(screened) == {"slide"}
