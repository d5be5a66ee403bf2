"""Measures the main job against its own limit, in one run on one machine.

    python jobs/benchmark.py                    end to end, against the bare engine
    python jobs/benchmark.py engine             the bare engine, beside its peers: no Ray, no zarr
    python jobs/benchmark.py archives           readers, against their decoders alone
    python jobs/benchmark.py training           training steps, beside a plain DataLoader loop
    python jobs/benchmark.py driver             what one driver costs: per slide, lease and start
    python jobs/benchmark.py feed               all but the model, against bare loops and Ray Data
    python jobs/benchmark.py decoding           in a replica's threads, against Ray tasks

The machine may be shared and noisy, so only ratios within one run count: what is compared
is timed by turns, or before and after each other.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

# What lies beside this file, under whichever name Python runs it (docs/decisions/0002).
sys.path.insert(0, str(Path(__file__).parent))

from cvm_batch.errors import CvmBatchError

_COMMANDS = {
    "end-to-end": "Archives on disk -> Parquet, against the bare engine (the default).",
    "engine": "Tiles in memory -> probabilities, beside peers; without Ray, zarr or OpenSlide.",
    "query": "Results of a made-up night -> answers, whole commands and within one process.",
    "archives": "Archives on disk -> tiles in memory, against the decoders alone.",
    "training": "Training steps, beside a plain eager DataLoader loop.",
    "driver": "What one driver costs: per slide, per lease, in memory, at its start.",
    "feed": "Archives on disk -> committed counts, the model a checksum; beside Ray Data.",
    "decoding": "Archives on disk -> tiles in a replica, by its threads and by Ray tasks.",
}


class _Lazy(click.Group):
    """Imports a command when it is called: a bare GPU machine has what `engine` needs alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"benchmarks.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, invoke_without_command=True)
@click.pass_context
def benchmark(context: click.Context) -> None:
    """Tiles per second, each figure beside what it is measured against."""
    if context.invoked_subcommand is None:
        from benchmarks.end_to_end import end_to_end

        context.invoke(end_to_end)


if __name__ == "__main__":
    try:
        benchmark()
    except CvmBatchError as error:
        sys.exit(f"Error: {error}")
