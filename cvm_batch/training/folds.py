"""A cross-validation's trials taken together: every cell is a test cell once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cvm_batch.training.bootstrap import OVERALL
from cvm_batch.training.paired import Answers

Found = Mapping[str, Any]


def joined(trials: Iterable[Found]) -> list[Found]:
    """One for each model and seed: its folds as one trial over all cells, and what was not
    cross-validated as it is.

    Figures are of all folds' answers together: means over folds would count a class of five
    cells in one fold as much as one of five hundred. A fold that failed fails the whole.
    """
    owners: dict[tuple[str, int], list[Found]] = {}
    for trial in trials:
        owners.setdefault((trial["model"], trial["seed"]), []).append(trial)
    found: list[Found] = []
    for these in owners.values():
        found += [_together(these)] if these[0].get("fold") else these
    return found


def _together(folds: Sequence[Found]) -> Found:
    failed = [trial for trial in folds if "error" in trial]
    if failed:
        number, of = failed[0]["fold"]
        return {**failed[0], "error": f"fold {number + 1} of {of}: {failed[0]['error']}"}
    answers = Answers.joined([Answers.of(trial["answers"]) for trial in folds])
    cells = [len(trial["answers"]["names"]) for trial in folds]
    halved = [trial["fp16"]["accuracy"] for trial in folds]
    return {
        **folds[0],
        "test": dict(zip(OVERALL, answers.overall().tolist(), strict=True)),
        "fp16": {"accuracy": float(np.average(halved, weights=cells))},
        "answers": answers.to_json(),
        "tiles_per_second": float(np.mean([trial["tiles_per_second"] for trial in folds])),
        "timed_on": "; ".join(sorted({trial["timed_on"] for trial in folds})),
    }
