"""GeoJSON for QuPath: every cell once, where it lies, with its class; read back by our reader."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cvm_batch.archives.tables.geojson import read_geojson
from cvm_batch.errors import ResultsError, UsageError
from cvm_batch.model.classes import CERVICAL_GROUPS, CVM_CERVIX_CLASSES
from cvm_batch.results.exporting.colours import colour_of
from cvm_batch.results.exporting.geojson import GeoJson
from cvm_batch.results.exporting.source import SlideResult
from cvm_batch.results.reading import Results
from tests.results.nights import CELLS, HOSTILE


def exported(slide: SlideResult, *, top: bool = False, **choice: Any) -> list[dict[str, Any]]:
    cells = GeoJson(slide_id=slide.slide_id, **choice)
    text = "".join(cells.lines(slide.top_cells() if top else slide.cells()))
    collection = json.loads(text)
    assert collection["type"] == "FeatureCollection"
    features: list[dict[str, Any]] = collection["features"]
    assert cells.written == len(features)
    return features


def cells_of(slide: SlideResult) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = slide.results.cells_of(slide).to_pylist()
    return found


@pytest.mark.parametrize("name", HOSTILE[:3])
def test_every_cell_is_there_with_its_class_and_place(results: Results, name: str) -> None:
    slide = SlideResult.find(results, name)
    features, cells = exported(slide), cells_of(slide)
    assert len(features) == len(cells) == CELLS
    for feature, cell in zip(features, cells, strict=True):
        assert feature["geometry"] == {"type": "Point", "coordinates": [cell["x"], cell["y"]]}
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["name"] == cell["cell_id"]
        assert properties["classification"] == {
            "name": cell["class"],
            "color": list(colour_of(cell["class"])),
        }
        assert properties["measurements"] == {
            "confidence": pytest.approx(cell["confidence"], abs=1e-4),
            "p_primary": pytest.approx(cell["p_primary"], abs=1e-4),
        }
    ids = [feature["id"] for feature in features]
    assert len(set(ids)) == CELLS
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", each) for each in ids)
    assert ids == [feature["id"] for feature in exported(slide)], "the same in each export"


def test_ids_differ_between_slides(results: Results) -> None:
    ids = [f["id"] for name in HOSTILE[:3] for f in exported(SlideResult.find(results, name))]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("box", [None, 80.0])
def test_it_reads_back_as_a_cells_table(results: Results, box: float | None) -> None:
    slide = SlideResult.find(results, HOSTILE[0])
    text = "".join(GeoJson(slide_id=slide.slide_id, box_px=box).lines(slide.cells()))
    marked = read_geojson(text.encode(), "it", most_cells=1000)
    xy = np.array([[cell["x"], cell["y"]] for cell in cells_of(slide)])
    assert np.allclose(marked.xy, xy)
    if box is None:
        assert marked.extent is None
    else:
        assert marked.extent is not None
        assert np.allclose(marked.extent, box)


def test_a_box_is_a_closed_square(results: Results) -> None:
    slide = SlideResult.find(results, HOSTILE[0])
    ring = exported(slide, box_px=10)[0]["geometry"]["coordinates"][0]
    x, y = cells_of(slide)[0]["x"], cells_of(slide)[0]["y"]
    assert ring == [
        [x - 5, y - 5],
        [x + 5, y - 5],
        [x + 5, y + 5],
        [x - 5, y + 5],
        [x - 5, y - 5],
    ]


def test_only_a_group(results: Results) -> None:
    slide = SlideResult.find(results, HOSTILE[0])
    members = CERVICAL_GROUPS["hsil_plus"]
    features = exported(slide, classes=slide.classes_of("hsil_plus"))
    counted = Counter(f["properties"]["classification"]["name"] for f in features)
    assert counted == {name: slide.row["class_counts"][name] for name in members}
    with pytest.raises(ResultsError, match="defines no group 'none'; it defines: asc_us_plus"):
        slide.classes_of("none")


def test_only_certain_cells(results: Results) -> None:
    slide = SlideResult.find(results, HOSTILE[0])
    confidences = sorted(cell["confidence"] for cell in cells_of(slide))
    assert len(exported(slide, least_confidence=confidences[10])) == CELLS - 10


def test_only_top_cells(results: Results) -> None:
    slide = SlideResult.find(results, HOSTILE[0])
    found = [f["properties"]["measurements"]["p_primary"] for f in exported(slide, top=True)]
    best = sorted((cell["p_primary"] for cell in cells_of(slide)), reverse=True)[:20]
    assert found == pytest.approx(best, abs=1e-4)


def test_cells_without_a_position_are_told_and_left_out(results: Results) -> None:
    slide = SlideResult.find(results, "nowhere.zip")
    cells = GeoJson(slide_id="nowhere.zip")
    assert json.loads("".join(cells.lines(slide.cells())))["features"] == []
    assert (cells.written, cells.without_position) == (0, 5)


def test_a_failed_slide_has_no_cells(results: Results) -> None:
    with pytest.raises(ResultsError, match=r"failed \(bad_format\)"):
        SlideResult.find(results, "broken.zip").cells()
    with pytest.raises(ResultsError, match="hold no slide 'other'"):
        SlideResult.find(results, "other")


@pytest.mark.parametrize(
    "choice",
    [
        {"least_confidence": 1.5},
        {"least_confidence": float("nan")},
        {"box_px": 0},
        {"box_px": float("inf")},
        {"box_px": float("nan")},
    ],
)
def test_senseless_choices_are_refused(choice: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        GeoJson(slide_id="a", **choice)  # type: ignore[arg-type]


def test_colours_tell_classes_apart() -> None:
    colours = [colour_of(name) for name in CVM_CERVIX_CLASSES]
    assert len(set(colours)) == len(colours)
    for name in ("ASC-H", "", "\udcff", "Glandular"):
        assert all(0 <= part <= 255 for part in colour_of(name))
        assert colour_of(name) == colour_of(name)


def test_a_cell_without_a_name_goes_by_its_index() -> None:
    cell = {"index": 7, "cell_id": None, "x": 1.0, "y": 2.0, "class": "NILM"}
    table = pa.Table.from_pylist([cell | {"confidence": 0.5, "p_primary": None}])
    text = "".join(GeoJson(slide_id="a").lines(table))
    (feature,) = json.loads(text)["features"]
    assert feature["properties"]["name"] == "#7"
    assert feature["properties"]["measurements"] == {"confidence": 0.5}
