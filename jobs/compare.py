"""The trials of a comparison on a Ray cluster, several at once.

    python jobs/compare.py TRIALS --at-once 4 [--gpus] [--address HOST:PORT]

TRIALS is the file that `cvm-batch compare --at-once` leaves. Each trial is a task that writes
its own file; every node must see the data and the study's folder under the same paths.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import click
import ray

from cvm_batch.cpus import usable_cpus
from cvm_batch.parent import end_with_parent
from cvm_batch.training.comparison import Trial, run


@click.command()
@click.argument("trials", type=click.Path(path_type=Path, exists=True))
@click.option("--at-once", type=click.IntRange(min=1), required=True)
@click.option("--gpus", is_flag=True, help="One GPU for each trial.")
@click.option("--address", help="Of a Ray cluster; by default one is started here.")
def main(trials: Path, at_once: int, gpus: bool, address: str | None) -> None:
    """Run TRIALS on a Ray cluster."""
    end_with_parent()
    missing: list[Trial] = pickle.loads(trials.read_bytes())  # noqa: S301 - by the same command
    ray.init(address=address or "local", include_dashboard=False)
    cpus = 1 if gpus else max(1, usable_cpus() // at_once)
    # One that dies with its node or for want of memory is tried once more.
    task = ray.remote(num_cpus=cpus, num_gpus=int(gpus), max_retries=1, max_calls=1)(_run)
    waiting, under_way = list(missing), dict[Any, Trial]()
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            trial = waiting.pop(0)
            under_way[task.remote(trial)] = trial
        (done,), _ = ray.wait(list(under_way), num_returns=1)
        trial = under_way.pop(done)
        try:
            value = ray.get(done)
        except ray.exceptions.RayError as error:
            value = {"error": str(error).splitlines()[0]}
        said = value.get("error") or f"accuracy {value['test']['accuracy']:.4f}"
        click.echo(f"{trial.model}, seed {trial.recipe.seed}: {said}")


def _run(trial: Trial) -> dict[str, Any]:
    return run(trial)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
