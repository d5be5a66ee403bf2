"""Table 3 anew: CSV, Markdown, and a page with accuracy against cost."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.model.comparison.registry import COMPARED
from cvm_batch.training.comparison import OURS
from cvm_batch.training.pages import write_page
from cvm_batch.training.paper import TABLE_3
from cvm_batch.training.plots import cost_plot, plotly_script

_COLUMNS = (
    "model",
    "seeds",
    "failed",
    "precision",
    "recall",
    "f1",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracy_fp16",
    "mcnemar_p",
    "parameters",
    "gflop",
    "tiles_per_second",
    "paper_precision",
    "paper_recall",
    "paper_f1",
    "paper_accuracy",
    "error",
)


@dataclass(frozen=True)
class Row:
    """A model over its seeds; shares are means, None where no seed came to its end."""

    model: str
    values: Mapping[str, Any]

    @property
    def title(self) -> str:
        name, at, change = self.model.partition("@")
        known = COMPARED.get(name)
        title = known.title if known else "CVM-Cervix" if name == OURS else name
        return f"{title}{at}{change}"


def rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One for each model, in the order in which they come."""
    by_model = defaultdict(list)
    for trial in found:
        by_model[trial["model"]].append(trial)
    ours = {trial["seed"]: trial for trial in by_model.get(OURS, []) if "right" in trial}
    return [Row(model, _values(model, these, ours)) for model, these in by_model.items()]


def _values(
    model: str, these: Sequence[Mapping[str, Any]], ours: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    done = [trial for trial in these if "error" not in trial]
    failed = [trial for trial in these if "error" in trial]
    values: dict[str, Any] = dict.fromkeys(_COLUMNS)
    values |= {"model": model, "seeds": len(done), "failed": len(failed)}
    values["error"] = failed[0]["error"] if failed else None
    if paper := TABLE_3.get(model):
        names = ("paper_precision", "paper_recall", "paper_f1", "paper_accuracy")
        values |= dict(zip(names, paper, strict=True))
    if not done:
        return values
    tests = [trial["test"] for trial in done]
    intervals = [test["intervals_95"]["accuracy"] for test in tests]
    values |= {
        "precision": mean(test["macro_precision"] for test in tests),
        "recall": mean(test["macro_recall"] for test in tests),
        "f1": mean(test["macro_f1"] for test in tests),
        "accuracy": mean(test["accuracy"] for test in tests),
        "accuracy_low": min(low for low, _ in intervals),
        "accuracy_high": max(high for _, high in intervals),
        "accuracy_fp16": mean(trial["fp16"]["accuracy"] for trial in done),
        "parameters": done[0]["parameters"],
        "gflop": done[0]["gflop"],
        "tiles_per_second": mean(trial["tiles_per_second"] for trial in done),
    }
    pairs = [(trial, ours[trial["seed"]]) for trial in done if trial["seed"] in ours]
    if model != OURS and pairs:
        right, theirs = (
            np.concatenate([np.array(pair[at]["right"], bool) for pair in pairs]) for at in (0, 1)
        )
        values["mcnemar_p"] = mcnemar(right, theirs)
    return values


def mcnemar(right: NDArray[np.bool_], other_right: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value that two classifiers err alike on the same cells [n]."""
    only, other = int((right & ~other_right).sum()), int((~right & other_right).sum())
    total = only + other
    tail = sum(comb(total, k) for k in range(min(only, other) + 1))
    return min(1.0, float(2 * tail / 2**total))


def as_csv(table: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(row.values) for row in table)
    return file.getvalue()


def as_markdown(table: Sequence[Row], note: str) -> str:
    """``note``: what budget this was, since figures of a small one say little."""
    head = ["model", "P, %", "R, %", "F1, %", "accuracy, % (95 %)", "fp16, %", "p", "M parameters"]
    head += ["GFLOP", "tiles/s", "paper: F1, %", "accuracy, %"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cells_of(row))} |" for row in table]
    return f"{note}\n\n" + "\n".join(lines) + "\n"


def cells_of(row: Row) -> list[str]:
    """The row as people read it."""
    values = row.values
    if values["accuracy"] is None:
        shown = [row.title, *[""] * 3, f"failed: {values['error']}", *[""] * 5]
    else:
        accuracy = (
            f"{_percent(values['accuracy'])} ({_percent(values['accuracy_low'])} to "
            f"{_percent(values['accuracy_high'])})"
        )
        p = values["mcnemar_p"]
        shown = [
            row.title,
            *(_percent(values[key]) for key in ("precision", "recall", "f1")),
            accuracy + (f", {values['failed']} seeds failed" if values["failed"] else ""),
            _percent(values["accuracy_fp16"]),
            "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
            f"{values['parameters'] / 1e6:.1f}",
            f"{values['gflop']:.2f}",
            f"{values['tiles_per_second']:.0f}",
        ]
    return [*shown, _percent(values["paper_f1"]), _percent(values["paper_accuracy"])]


def write(folder: Path, table: Sequence[Row], note: str) -> None:
    """table.csv, table.md and index.html in ``folder``."""
    (folder / "table.csv").write_text(as_csv(table))
    (folder / "table.md").write_text(as_markdown(table, note))
    done = [row for row in table if row.values["accuracy"] is not None]
    write_page(
        folder / "index.html",
        "comparison.html.j2",
        rows=[cells_of(row) for row in table],
        note=note,
        plots={
            key: cost_plot(
                [(row.title, row.values[key], row.values["accuracy"]) for row in done], title
            )
            for key, title in (
                ("gflop", "GFLOP a tile"),
                ("parameters", "parameters"),
                ("tiles_per_second", "tiles a second, fp32, eager"),
            )
        },
        plotly=plotly_script(),
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
