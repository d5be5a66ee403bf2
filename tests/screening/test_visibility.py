"""What a node says that does not see what the driver sees."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cvm_batch.model.bundle import Bundle
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.screening.visibility import Needs, lacking_here, probe_arrived


@pytest.fixture
def needs(tmp_path: Path, tiny_bundle: Bundle) -> Needs:
    (tmp_path / "slides" / "a").mkdir(parents=True)
    results = ResultsFolder(tmp_path / "results")
    results.prepare()
    inputs = [str(tmp_path / "slides"), str(tmp_path / "slides" / "a")]
    return Needs.of(inputs, tiny_bundle.path, tiny_bundle.digest, results, "probe")


def test_a_node_that_sees_it_all(needs: Needs, tmp_path: Path) -> None:
    assert lacking_here(needs, "n1") == []
    assert probe_arrived(needs, "n1")
    assert not list((tmp_path / "results" / ".tmp").iterdir()), "nothing stays"


def test_an_empty_mount_point(needs: Needs, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "slides")
    (tmp_path / "slides").mkdir()
    assert set(lacking_here(needs, "n1")) == {f"no {tmp_path / 'slides' / 'a'}"}


def test_no_bundle_or_another_one(needs: Needs, tmp_path: Path) -> None:
    gone = replace(needs, bundle=str(tmp_path / "gone"))
    assert lacking_here(gone, "n1") == [f"no bundle at {tmp_path / 'gone'}"]
    other = replace(needs, bundle_digest="0" * 64)
    assert lacking_here(other, "n1") == [f"another bundle at {needs.bundle}"]


def test_results_that_cannot_be_written_or_are_elsewhere(needs: Needs, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below_a_file = replace(needs, results=str(tmp_path / "file" / "results"))
    assert lacking_here(below_a_file, "n1") == [
        f"cannot write to the results folder {tmp_path / 'file' / 'results'}"
    ]
    ResultsFolder(tmp_path / "elsewhere").prepare()
    lacking_here(replace(needs, results=str(tmp_path / "elsewhere")), "n1")
    assert not probe_arrived(needs, "n1")
