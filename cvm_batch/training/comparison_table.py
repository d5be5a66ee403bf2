"""Table 3 anew: CSV, Markdown, and a page with accuracy against cost."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from cvm_batch.model.comparison.registry import COMPARED
from cvm_batch.training.folds import joined
from cvm_batch.training.networks import OURS
from cvm_batch.training.pages import write_page
from cvm_batch.training.paired import Answers, differences, intervals, median_p
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
    "f1_low",
    "f1_high",
    "accuracy_fp16",
    "accuracy_difference",
    "accuracy_difference_low",
    "accuracy_difference_high",
    "f1_difference",
    "f1_difference_low",
    "f1_difference_high",
    "mcnemar_p",
    "parameters",
    "gflop",
    "tiles_per_second",
    "timed_on",
    "paper_precision",
    "paper_recall",
    "paper_f1",
    "paper_accuracy",
    "error",
)
_PAPERS = ("paper_precision", "paper_recall", "paper_f1", "paper_accuracy")
_SHORT = {"accuracy": "accuracy", "macro_f1": "f1"}
#: What people are shown.
HEAD = (
    "model",
    "precision, %",
    "recall, %",
    "F1, % (95 %)",
    "accuracy, % (95 %)",
    "accuracy against CVM-Cervix, points (95 %)",
    "F1 against CVM-Cervix, points (95 %)",
    "p",
    "accuracy in fp16, %",
    "million parameters",
    "GFLOP",
    "tiles/s",
    "paper: precision, %",
    "paper: recall, %",
    "paper: F1, %",
    "paper: accuracy, %",
)
_EXPLAINED = (
    "Macro averages on the test cells, means over the seeds. In brackets 95 % intervals by "
    "bootstrap over groups of cells that were taken together. Against CVM-Cervix: the model's "
    "figure less that of CVM-Cervix on the same cells, the same groups drawn for both; an interval "
    "without 0 in it tells them apart. p: McNemar's exact test, of the middle seed; it takes the "
    "cells of a group as independent, which the intervals do not. In fp16: with weights rounded to "
    "16 bits. The columns of the paper are its Table 3, on its own data."
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
    """One for each model, in the order in which they come; folds of a cross-validation as one."""
    by_model = defaultdict(list)
    for trial in joined(found):
        by_model[trial["model"]].append(trial)
    ours = _answers(by_model.get(OURS, []))
    return [Row(model, _values(model, these, ours)) for model, these in by_model.items()]


def _answers(these: Sequence[Mapping[str, Any]]) -> dict[int, Answers]:
    """By seed, of the trials that came to their end."""
    return {trial["seed"]: Answers.of(trial["answers"]) for trial in these if trial.get("answers")}


def _values(
    model: str, these: Sequence[Mapping[str, Any]], ours: Mapping[int, Answers]
) -> dict[str, Any]:
    done = [trial for trial in these if "error" not in trial]
    failed = [trial for trial in these if "error" in trial]
    values: dict[str, Any] = dict.fromkeys(_COLUMNS)
    values |= {"model": model, "seeds": len(done), "failed": len(failed)}
    values["error"] = failed[0]["error"] if failed else None
    if paper := TABLE_3.get(model):
        values |= dict(zip(_PAPERS, paper, strict=True))
    if not done:
        return values
    tests = [trial["test"] for trial in done]
    values |= {
        "precision": mean(test["macro_precision"] for test in tests),
        "recall": mean(test["macro_recall"] for test in tests),
        "f1": mean(test["macro_f1"] for test in tests),
        "accuracy": mean(test["accuracy"] for test in tests),
        "accuracy_fp16": mean(trial["fp16"]["accuracy"] for trial in done),
        "parameters": done[0]["parameters"],
        "gflop": done[0]["gflop"],
        "tiles_per_second": mean(trial["tiles_per_second"] for trial in done),
        "timed_on": "; ".join(sorted({trial["timed_on"] for trial in done})),
    }
    return values | _statistics(_answers(done), {} if model == OURS else ours)


def _statistics(these: Mapping[int, Answers], ours: Mapping[int, Answers]) -> dict[str, Any]:
    """Intervals, and the comparison with ours by the seeds that both have.

    A model whose test cells are others (``@split=paper``, say) has nothing to compare.
    """
    values: dict[str, Any] = {}
    for name, (low, high) in (intervals([*these.values()]) or {}).items():
        values |= {f"{_SHORT[name]}_low": low, f"{_SHORT[name]}_high": high}
    pairs = [(these[seed], ours[seed]) for seed in these if seed in ours]
    found = differences([one for one, _ in pairs], [other for _, other in pairs])
    if found is None:
        return values
    for name, (difference, (low, high)) in found.items():
        key = f"{_SHORT[name]}_difference"
        values |= {key: difference, f"{key}_low": low, f"{key}_high": high}
    return values | {"mcnemar_p": median_p(pairs)}


def as_csv(table: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(row.values) for row in table)
    return file.getvalue()


def as_markdown(table: Sequence[Row], note: str) -> str:
    """``note``: what budget this was, since figures of a small one say little."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    lines += [f"| {' | '.join(cells_of(row))} |" for row in table]
    return f"{note}\n\n" + "\n".join(lines) + f"\n\n{_explained(table)}\n"


def _explained(table: Sequence[Row]) -> str:
    timed = sorted({found for row in table if (found := row.values["timed_on"])})
    sentence = f" Tiles/s: in fp32, eager, on {'; '.join(timed)}." if timed else ""
    if len(timed) > 1 or any("beside" in one for one in timed):
        sentence += (
            " What shares a machine is slowed by the others, and speeds of different machines say "
            "nothing of the models: read them as rough, or run the study without --at-once."
        )
    return _EXPLAINED + sentence


def cells_of(row: Row) -> list[str]:
    """The row as people read it, under `HEAD`."""
    values = row.values
    papers = [_percent(values[key]) for key in _PAPERS]
    if values["accuracy"] is None:
        before = HEAD.index("accuracy, % (95 %)")
        after = len(HEAD) - len(papers) - before - 1
        failed = f"failed: {values['error']}"
        return [row.title, *[""] * (before - 1), failed, *[""] * after, *papers]
    seeds = f", {values['failed']} seeds failed" if values["failed"] else ""
    p = values["mcnemar_p"]
    return [
        row.title,
        _percent(values["precision"]),
        _percent(values["recall"]),
        _with_interval(values, "f1"),
        _with_interval(values, "accuracy") + seeds,
        _with_interval(values, "accuracy_difference", "+"),
        _with_interval(values, "f1_difference", "+"),
        "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        _percent(values["accuracy_fp16"]),
        f"{values['parameters'] / 1e6:.1f}",
        f"{values['gflop']:.2f}",
        f"{values['tiles_per_second']:.0f}",
        *papers,
    ]


def write(folder: Path, table: Sequence[Row], note: str) -> None:
    """table.csv, table.md and index.html in ``folder``."""
    (folder / "table.csv").write_text(as_csv(table))
    (folder / "table.md").write_text(as_markdown(table, note))
    done = [row for row in table if row.values["accuracy"] is not None]
    write_page(
        folder / "index.html",
        "comparison.html.j2",
        head=HEAD,
        rows=[cells_of(row) for row in table],
        explained=_explained(table),
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


def _with_interval(values: Mapping[str, Any], key: str, sign: str = "") -> str:
    if values[key] is None:
        return ""
    shown = _percent(values[key], sign)
    low, high = (_percent(values[f"{key}_{end}"], sign) for end in ("low", "high"))
    return f"{shown} ({low} to {high})" if low else shown


def _percent(share: float | None, sign: str = "") -> str:
    return "" if share is None else f"{100 * share:{sign}.1f}"
