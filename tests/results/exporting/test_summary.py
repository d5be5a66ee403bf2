"""The run summary: as its published schema says, with names only where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.exporting.summary import (
    Lacking,
    find_lacking,
    plain_summary,
    schema,
    summary_without_names,
)
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifests
from cvm_batch.results.reading import Results
from tests.results.nights import CELLS, HOSTILE

VALIDATOR = jsonschema.Draft202012Validator(schema())


@pytest.fixture
def manifest(exported: Path) -> dict[str, Any]:
    """Of a run with one whole slide and a broken one of a hostile name."""
    return dict(next(manifests(ResultsFolder(exported))))


@pytest.fixture
def lacking(results: Results, manifest: dict[str, Any]) -> list[Lacking]:
    return find_lacking(results, manifest["run_id"])


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_a_run_s_summary_is_as_the_schema_says(
    manifest: dict[str, Any], lacking: list[Lacking]
) -> None:
    found = plain_summary(manifest, lacking)
    VALIDATOR.validate(json.loads(json.dumps(found)))
    assert (found["run_id"], found["state"]) == (manifest["run_id"], "finished")
    assert (found["slides"]["complete"], found["slides"]["failed"]) == (1, 1)
    assert (found["exit_code"], found["cells"]["classified"]) == (3, CELLS)
    assert found["slide_names"] == "plain"
    assert [one["slide_id"] for one in found["not_complete"]] == [HOSTILE[3]]
    assert found["reasons"] == {"bad_format": 1}
    assert found["audit"] == manifest["audit"] is not None


@pytest.mark.parametrize("state", ["running", "stopped", "aborted", "interrupted"])
def test_whatever_its_state(manifest: dict[str, Any], state: str) -> None:
    manifest["state"] = state
    if state in ("running", "interrupted"):
        manifest |= {"finished_at": None, "exit_code": None, "tiles_per_second": None}
    VALIDATOR.validate(json.loads(json.dumps(plain_summary(manifest, []))))


def test_with_a_key_slides_have_pseudonyms(
    manifest: dict[str, Any], lacking: list[Lacking]
) -> None:
    key = Pseudonyms(b"0123456789abcdef")
    found = summary_without_names(manifest, lacking, key)
    VALIDATOR.validate(json.loads(json.dumps(found)))
    assert found["slide_names"] == "pseudonyms"
    assert [one["slide_id"] for one in found["not_complete"]] == [key.of(HOSTILE[3])]
    assert_names_no_slide(found)


def test_without_a_key_no_slide_is_named(manifest: dict[str, Any], lacking: list[Lacking]) -> None:
    found = summary_without_names(manifest, lacking, None)
    VALIDATOR.validate(json.loads(json.dumps(found)))
    assert (found["slide_names"], found["not_complete"]) == ("withheld", [])
    assert found["reasons"] == {"bad_format": 1}
    assert_names_no_slide(found)


def assert_names_no_slide(summary: dict[str, Any]) -> None:
    text = json.dumps(summary, ensure_ascii=False)
    for name in (HOSTILE[3], "@listed", "a.zarr.zip", "night.csv"):
        assert json.dumps(name, ensure_ascii=False)[1:-1] not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("state", "done"), ("exit_code", 7), ("slides", {}), ("model", None), ("run_id", "../x")],
)
def test_the_schema_refuses_what_no_summary_says(
    manifest: dict[str, Any], name: str, value: object
) -> None:
    found = plain_summary(manifest, []) | {name: value}
    assert not VALIDATOR.is_valid(json.loads(json.dumps(found)))
