"""What is shipped: the demonstration bundle and the demonstration's slides."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import cvm_batch
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import CARD_FILE, Bundle
from cvm_batch.model.network import parameter_count
from cvm_batch.model.precision import Precision, cpu_prefers_bf16
from cvm_batch.model.registry import find_bundle
from cvm_batch.training.card import percent
from cvm_batch.training.recipes import RECIPES

NAME = "cvm-cervix-mini-cric6"
ASSETS = Path(cvm_batch.__file__).parent / "assets"
DEMO = ASSETS / "demo"
CLASSES = ("ASC-H", "ASC-US", "SCC", "HSIL", "LSIL", "NILM")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return find_bundle(NAME)


@pytest.fixture(scope="module")
def card(bundle: Bundle) -> str:
    return (bundle.path / CARD_FILE).read_text()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def labels() -> list[dict[str, str]]:
    with (DEMO / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_bundle_is_what_its_name_says(bundle: Bundle) -> None:
    assert bundle.spec.name == NAME
    assert bundle.spec.class_names == CLASSES
    assert bundle.spec.primary_group == "asc_us_plus"
    assert bundle.spec.preprocessing.input_px == 96
    assert bundle.spec.precision is Precision.FP16
    assert parameter_count(bundle.network()) <= 4_000_000


def test_it_was_made_by_the_recipe_of_its_name(bundle: Bundle) -> None:
    # Recipes have grown fields since; what it says of itself is still what the recipe says.
    said, recipe = dict(bundle.spec.provenance["recipe"]), RECIPES[NAME].to_json()
    flips = said["augmentation"].pop("flips")
    assert flips is recipe["augmentation"]["horizontal_flip"] is True
    augmentation = said.pop("augmentation")
    assert augmentation.items() <= recipe.pop("augmentation").items()
    assert said == {key: recipe[key] for key in said}


@pytest.mark.parametrize(
    "precision",
    [
        Precision.FP32,
        pytest.param(
            Precision.BF16,
            marks=pytest.mark.skipif(not cpu_prefers_bf16(), reason="bf16 is not faster here"),
        ),
    ],
)
def test_sentinels_verify(bundle: Bundle, precision: Precision) -> None:
    engine = start_engine(bundle, device=torch.device("cpu"), precision=precision)
    assert engine.sentinel_difference <= engine.precision.tolerance


def test_sentinels_are_tiles_as_they_come(bundle: Bundle) -> None:
    assert bundle.sentinels().tiles.shape == (16, 100, 100, 3)


def test_bundles_stay_small() -> None:
    for bundle in (ASSETS / "bundles").iterdir():
        assert size(bundle) <= 8 * 10**6


def test_the_card_gives_the_measured_figures(bundle: Bundle, card: str) -> None:
    test: dict[str, Any] = bundle.spec.provenance["metrics"]["test"]
    for name, row in test["per_class"].items():
        shares = (percent(row[key]) for key in ("precision", "recall", "f1"))
        assert f"| {name} | {' | '.join(shares)} | {row['support']} |" in card
    assert f"Accuracy {percent(test['accuracy'])} %" in card


def test_the_card_says_where_it_comes_from_and_what_it_is_not_for(card: str) -> None:
    for words in (
        "Not a medical device, and not for diagnosis",
        "CRIC Cervix",
        "Scientific Data 8:151",
        "10.6084/m9.figshare.c.4960286.v2",
        "CC BY 4.0",
    ):
        assert words in card


def test_no_frame_was_on_two_sides(bundle: Bundle) -> None:
    split, data = (bundle.spec.provenance[key] for key in ("split", "data"))
    assert data["grouped_by"] == "frame"
    assert sum(side["groups"] for side in split["sides"].values()) == data["groups"]
    assert sum(side["cells"] for side in split["sides"].values()) == data["cells"]


def test_the_demo_is_small_and_attributed() -> None:
    assert size(DEMO) <= 3 * 10**6
    attribution = (DEMO / "ATTRIBUTION.md").read_text()
    assert "CC BY 4.0" in attribution
    assert "10.6084/m9.figshare.c.4960286.v2" in attribution
    assert "not for diagnosis" in attribution


def test_the_demo_shows_every_class_and_a_field_without_findings() -> None:
    by_slide: dict[str, set[str]] = {}
    for row in labels():
        by_slide.setdefault(row["slide_id"], set()).add(row["label"])
    assert set(by_slide) == {path.name for path in (DEMO / "slides").iterdir()}
    sound = {slide: found for slide, found in by_slide.items() if "damaged" not in slide}
    assert set().union(*sound.values()) == set(CLASSES)
    assert {"NILM"} in sound.values()


def test_every_slide_has_its_cells_and_its_table() -> None:
    listed: dict[str, list[str]] = {}
    for row in labels():
        listed.setdefault(row["slide_id"], []).append(row["file"])
    for slide in (DEMO / "slides").iterdir():
        names, table = _content(slide)
        rows = list(csv.DictReader(table.splitlines()))
        assert list(rows[0]) == ["file", "cell_id", "x", "y"]
        assert [row["file"] for row in rows] == listed[slide.name]
        assert sorted(names) == sorted([*listed[slide.name], "cells.csv"])


def test_exactly_one_member_of_one_archive_is_damaged() -> None:
    faults = {}
    for slide in sorted((DEMO / "slides").glob("*.zip")):
        with zipfile.ZipFile(slide) as archive:
            faults[slide.name] = [name for name in archive.namelist() if not _sound(archive, name)]
    damaged = {slide: names for slide, names in faults.items() if names}
    assert len(damaged) == 1
    (slide, names), *_ = damaged.items()
    assert slide.endswith("-damaged.zip")
    assert len(names) == 1
    assert names[0].endswith(".jpg")


def _content(slide: Path) -> tuple[list[str], str]:
    """Names of all members, and the text of the table."""
    if slide.is_dir():
        return [path.name for path in slide.iterdir()], (slide / "cells.csv").read_text()
    with zipfile.ZipFile(slide) as archive:
        return archive.namelist(), archive.read("cells.csv").decode()


def _sound(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        archive.read(name)
    except zipfile.BadZipFile:
        return False
    return True
