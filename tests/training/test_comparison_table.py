"""What the trials of a comparison say together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvm_batch.training.comparison_table import HEAD, cells_of, rows, write
from cvm_batch.training.metrics import measure

LABELS = (0, 1, 0, 1, 0, 1, 0, 1)
HALF = [0] * 8


def made(model: str, seed: int, predicted: Sequence[int], **changed: object) -> dict[str, Any]:
    """A trial's file on eight cells in four groups."""
    test = measure(np.array(LABELS), np.array(predicted), ("a", "b")).to_json()
    answers = {
        "names": [f"cell{at}" for at in range(8)],
        "groups": [f"frame{at // 2}" for at in range(8)],
        "labels": list(LABELS),
        "predicted": list(predicted),
    }
    costs = {"parameters": 5, "gflop": 1.0, "tiles_per_second": 10.0, "timed_on": "a GPU"}
    named = {"model": model, "seed": seed, "test": test, "answers": answers | changed}
    return named | costs | {"fp16": {"accuracy": test["accuracy"]}}


def test_seeds_are_averaged_and_told_apart_from_ours() -> None:
    found = [
        made("cvm-cervix", 0, LABELS),
        made("cvm-cervix", 1, HALF),
        made("x", 0, HALF),
        made("x", 1, [1 - label for label in LABELS]),
        made("x", 2, LABELS),  # ours has no such seed
        {"model": "y", "seed": 0, "error": "it broke"},
    ]
    table = {row.model: row.values for row in rows(found)}
    ours, x = table["cvm-cervix"], table["x"]
    assert (ours["accuracy"], x["seeds"], x["accuracy"]) == (0.75, 3, 0.5)
    # Every group is half right by one seed and wholly by the other: no draw changes that.
    assert (ours["accuracy_low"], ours["accuracy_high"]) == (0.75, 0.75)
    assert x["accuracy_difference"] == -0.5
    assert (x["accuracy_difference_low"], x["accuracy_difference_high"]) == (-0.5, -0.5)
    # In each seed ours alone is right on four cells, the other never: 2 / 2**4. Both seeds
    # counted together, as eight cells, would give 2 / 2**8.
    assert x["mcnemar_p"] == 2 / 2**4
    assert ours["mcnemar_p"] is ours["accuracy_difference"] is None
    assert table["y"]["error"] == "it broke"
    assert table["y"]["accuracy"] is None


def test_other_test_cells_are_not_compared() -> None:
    """As of `resnet18@split=paper`: as many cells, and others."""
    others = [f"other{at}" for at in range(8)]
    found = [
        made("cvm-cervix", 0, LABELS),
        made("names", 0, HALF, names=others),
        made("groups", 0, HALF, groups=others),
        made("same", 0, HALF),
    ]
    table = {row.model: row for row in rows(found)}
    for model in ("names", "groups"):
        assert table[model].values["mcnemar_p"] is None
        assert table[model].values["f1_difference"] is None
        assert table[model].values["accuracy_low"] is not None
        shown = dict(zip(HEAD, cells_of(table[model]), strict=True))
        assert shown["p"] == shown["F1 against CVM-Cervix, points (95 %)"] == ""
    assert table["same"].values["mcnemar_p"] == 2 / 2**4


def test_the_table_has_the_papers_four_figures(tmp_path: Path) -> None:
    """Markdown and page show all of them, under the right heads, also where a trial failed."""
    failed = {"model": "alexnet", "seed": 0, "error": "it broke"}
    found = [made("cvm-cervix", 0, LABELS), made("resnet18", 0, HALF), failed]
    write(tmp_path, rows(found), "A note.")
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if "|" in line]
    head, _, ours, resnet, alexnet = (
        [cell.strip() for cell in line[1:-1].split("|")] for line in lines
    )
    shown = dict(zip(head, resnet, strict=True))
    assert shown["paper: precision, %"] == "88.4"
    assert shown["paper: recall, %"] == "88.3"
    assert shown["accuracy against CVM-Cervix, points (95 %)"] == "-50.0 (-50.0 to -50.0)"
    assert dict(zip(head, ours, strict=True))["accuracy, % (95 %)"] == "100.0 (100.0 to 100.0)"
    broken = dict(zip(head, alexnet, strict=True))
    assert broken["accuracy, % (95 %)"] == "failed: it broke"
    assert broken["paper: accuracy, %"] == "86.1"
    page = (tmp_path / "index.html").read_text()
    for cell in (*head, *resnet):
        assert f">{cell}</th>" in page or f">{cell}</td>" in page


def test_speeds_measured_beside_others_are_marked(tmp_path: Path) -> None:
    alone, beside = (
        made("cvm-cervix", 0, HALF) | {"timed_on": timed_on}
        for timed_on in ("2 CPU threads", "1 CPU threads, beside 3 other trials")
    )
    write(tmp_path, rows([alone]), "")
    told = (tmp_path / "table.md").read_text()
    assert "eager, on 2 CPU threads." in told
    assert "rough" not in told
    write(tmp_path, rows([beside]), "")
    told = (tmp_path / "table.md").read_text()
    assert "on 1 CPU threads, beside 3 other trials. What shares a machine" in told
    assert "beside 3 other trials" in (tmp_path / "table.csv").read_text()
