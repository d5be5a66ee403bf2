"""`cvm-batch compare`: the models of Table 3 on one's own cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cvm_batch.cli.cluster import Handing, check_direct, hand_over_command, handing_over_options
from cvm_batch.cluster.doors import is_jobs_address


@click.command()
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Labelled cells, in any layout that `train` takes.",
)
@click.option(
    "--models",
    default="all",
    show_default=True,
    help="Names with commas between: of --list or of timm; NAME@FIELD=VALUE changes a recipe's "
    "field for one of them, cvm-cervix@hidden=560 the fusion's width; NAME@augmentation=none does "
    "without.",
)
@click.option("--recipe", "recipe_name", metavar="NAME", help="The same for all of them.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Of the study.")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Another field.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--folds",
    type=click.IntRange(min=3),
    help="Cross-validation: each is trained so often, and every cell is held back once, with all "
    "of its group.",
)
@click.option("--at-once", type=click.IntRange(min=1), help="Trials at once on a Ray cluster.")
@click.option("--gpus", is_flag=True, help="With --at-once: a GPU for each trial.")
@click.option(
    "--address",
    help="With --at-once: of the Ray cluster; http(s)://HOST:PORT hands all of it over.",
)
@handing_over_options
@click.option("--list", "list_models", is_flag=True, help="List the models' names.")
@click.pass_context
def compare(
    context: click.Context,
    /,
    data: tuple[Path, ...],
    models: str,
    recipe_name: str | None,
    out: Path | None,
    epochs: int | None,
    settings: tuple[str, ...],
    seeds: int,
    folds: int | None,
    at_once: int | None,
    gpus: bool,
    address: str | None,
    list_models: bool,
    **options: Any,
) -> int | None:
    """Train and judge several models alike: Table 3 on your own cells.

    The same command goes on where it was interrupted, and tries again what failed. OUT gets
    table.csv, table.md and index.html.
    """
    from cvm_batch.training.comparison import ALL, trials
    from cvm_batch.training.study import OnRay, here, study

    if list_models:
        for name in ALL:
            click.echo(name)
        return None
    if not data or recipe_name is None or out is None:
        raise click.UsageError("Give --data, --recipe and --out; --list prints the models.")
    if (gpus or address) and at_once is None:
        raise click.UsageError("--gpus and --address go with --at-once.")
    handing = Handing.of(options)
    if address is not None and is_jobs_address(address):
        return hand_over_command(context, address, handing, see=data, write=out.parent)
    check_direct(address, handing)
    from cvm_batch.training.recipes import find_recipe
    from cvm_batch.training.report import check_installed

    check_installed()
    changes = (*settings, *([] if epochs is None else [f"epochs={epochs}"]))
    names = ALL if models == "all" else tuple(name.strip() for name in models.split(","))
    recipe = find_recipe(recipe_name)
    planned = trials(names, range(seeds), recipe, data, out, changes, folds=folds)
    runner = OnRay(at_once=at_once, gpus=gpus, address=address) if at_once else here
    failed = study(planned, out, runner=runner, say=click.echo)
    click.echo(f"The table: {out / 'index.html'}, table.md and table.csv beside it")
    if failed:
        click.echo(f"{failed} of {len(planned)} trials failed; the table says why.")
        raise SystemExit(3)
    return None
