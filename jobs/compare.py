"""The trials of a comparison on a Ray cluster, several at once.

    python jobs/compare.py TRIALS --at-once 4 [--gpus] [--address HOST:PORT]

TRIALS is the file that `cvm-batch compare --at-once` leaves. Each trial is a task that writes
its own file; every node must see the data and the study's folder under the same paths.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import ray

from cvm_batch.cpus import usable_cpus
from cvm_batch.parent import end_with_parent
from cvm_batch.training.comparison import Trial, failed, run
from cvm_batch.training.study import cpus_for_each


@click.command()
@click.argument("trials", type=click.Path(path_type=Path, exists=True))
@click.option("--at-once", type=click.IntRange(min=1), required=True)
@click.option("--gpus", is_flag=True, help="One GPU for each trial.")
@click.option("--address", help="Of a Ray cluster; by default one is started here.")
def main(trials: Path, at_once: int, gpus: bool, address: str | None) -> None:
    """Run TRIALS on a Ray cluster."""
    end_with_parent()
    missing: list[Trial] = pickle.loads(trials.read_bytes())  # noqa: S301 - by the same command
    # Here Ray would count the machine's CPUs, and not those that this process may use.
    count = {} if address else {"num_cpus": usable_cpus()}
    ray.init(address=address or "local", include_dashboard=False, **count)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    _check_gpus(nodes, gpus, address)
    cpus = cpus_for_each(nodes, at_once, gpus=gpus)
    beside = min(at_once, len(missing)) - 1
    # One that dies with its node or for want of memory is tried once more.
    task = ray.remote(num_cpus=cpus, num_gpus=int(gpus), max_retries=1, max_calls=1)(_run)
    waiting, under_way = list(missing), dict[Any, Trial]()
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            trial = waiting.pop(0)
            under_way[task.remote(trial, cpus, beside)] = trial
        (done,), _ = ray.wait(list(under_way), num_returns=1)
        trial = under_way.pop(done)
        value = _ended(trial, done)
        said = value.get("error") or f"accuracy {value['test']['accuracy']:.4f}"
        click.echo(f"{trial.model}, seed {trial.recipe.seed}: {said}")


def _run(trial: Trial, cpus: int, beside: int) -> dict[str, Any]:
    return run(trial, threads=cpus, beside=beside)


def _check_gpus(nodes: Sequence[Mapping[str, float]], gpus: bool, address: str | None) -> None:
    """Raises ClickException where a GPU would be waited for that never comes."""
    if not gpus or any(node.get("GPU", 0) >= 1 for node in nodes):
        return
    if address is None:
        raise click.ClickException("Ray finds no GPU on this machine: leave --gpus out.")
    # It may be one that grows by itself.
    click.echo("No node of the cluster has a GPU yet; the trials wait for one.")


def _ended(trial: Trial, done: Any) -> dict[str, Any]:
    """What the trial came to; one that died could leave no file, and gets it here."""
    try:
        value: dict[str, Any] = ray.get(done)
    except ray.exceptions.RayError as error:
        return failed(trial, error)
    return value


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
