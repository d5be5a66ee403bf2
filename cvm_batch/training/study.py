"""A study's trials, here one after the other or on a Ray cluster, and its table."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cvm_batch.errors import RunAbortedError
from cvm_batch.training import comparison_table
from cvm_batch.training.comparison import Trial, run
from cvm_batch.training.elsewhere import run_job

_JOB_FILE = "trials.pickle"
#: Of a trial whose process and whose job died, or that wrote where this process does not see it.
_NO_RESULT = {"error": "left no result"}


class Runner(Protocol):
    """Runs trials; each leaves its file."""

    def __call__(self, missing: Sequence[Trial], say: Callable[[str], None]) -> None: ...


def here(missing: Sequence[Trial], say: Callable[[str], None]) -> None:
    """One after the other in this process."""
    for number, trial in enumerate(missing, start=1):
        fold = f", fold {trial.fold.number + 1} of {trial.fold.of}" if trial.fold else ""
        say(f"{trial.model}, seed {trial.recipe.seed}{fold} ({number} of {len(missing)})")
        _tell(run(trial, say=say), say)


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """Several at once by `jobs/compare.py`."""

    at_once: int
    gpus: bool = False
    address: str | None = None

    def __call__(self, missing: Sequence[Trial], say: Callable[[str], None]) -> None:
        """Raises RunAbortedError where the job fails as a whole."""
        path = missing[0].folder / _JOB_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(list(missing)))
        options = ("--at-once", str(self.at_once))
        code = run_job("compare.py", path, *options, gpus=self.gpus, address=self.address)
        if code:
            raise RunAbortedError(
                f"The study's job ended with exit code {code}; what it said is above. The same "
                "command goes on with the trials that are missing."
            )
        path.unlink()


def cpus_for_each(nodes: Sequence[Mapping[str, float]], at_once: int, *, gpus: bool = False) -> int:
    """The most CPUs that each of so many trials may ask for and still run at the same time.

    ``nodes`` are Ray's resources of each. A trial lies within one node: a share of the sum of all
    could be more than any node has, and such a task would wait for ever.
    """
    largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)

    def room(cpus: int) -> int:
        return sum(
            min(int(node.get("CPU", 0)) // cpus, int(node.get("GPU", 0)) if gpus else at_once)
            for node in nodes
        )

    wanted = min(at_once, room(1))
    return next((cpus for cpus in range(largest, 0, -1) if room(cpus) >= max(1, wanted)), 1)


def study(
    planned: Sequence[Trial],
    out: Path,
    *,
    runner: Runner = here,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Run what has not run to its end yet, and write the table; return how many failed."""
    missing = [trial for trial in planned if _is_missing(trial)]
    say(f"{len(planned)} trials, {len(planned) - len(missing)} of them done before")
    if missing:
        runner(missing, say)
    found = [trial.found() or trial.named | _NO_RESULT for trial in planned]
    comparison_table.write(out, comparison_table.rows(found), _note(planned))
    return sum("error" in value for value in found)


def _is_missing(trial: Trial) -> bool:
    found = trial.found()
    return found is None or "error" in found


def _note(planned: Sequence[Trial]) -> str:
    recipe = planned[0].recipe
    data = ", ".join(path.name for path in planned[0].data)
    fold = planned[0].fold
    split = f"{fold.of} grouped folds" if fold else f"split {recipe.split}"
    return (
        f"Data {data}, {split} with seed {recipe.split_seed}, input "
        f"{recipe.preprocessing.input_px} px, {recipe.epochs} epochs of batches of "
        f"{recipe.batch_size}, {len({trial.recipe.seed for trial in planned})} seeds, from random "
        "weights. A small budget says little of the models: what learns fast wins."
    )


def _tell(value: dict[str, Any], say: Callable[[str], None]) -> None:
    if "error" in value:
        say(f"{value['model']} failed: {value['error']}")
    else:
        test = value["test"]
        say(f"{value['model']}: accuracy {test['accuracy']:.4f}, macro F1 {test['macro_f1']:.4f}")
