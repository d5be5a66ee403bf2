"""`cvm-batch train`: from labelled cells to a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cvm_batch.cli.cluster import Handing, check_direct, hand_over_command, handing_over_options
from cvm_batch.cli.console import STDOUT
from cvm_batch.cluster.doors import is_jobs_address
from cvm_batch.errors import AgreementError

if TYPE_CHECKING:
    from cvm_batch.training.pretrained import First
    from cvm_batch.training.publish import Published


class _FirstWeights(click.ParamType[Any]):
    """A file, or the word ``timm``."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> First:
        # Where one is given, what it is for loads PyTorch anyway.
        from cvm_batch.training.pretrained import DOWNLOADED

        return DOWNLOADED if value == DOWNLOADED else Path(value)


@click.command()
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Labelled cells, in one of the layouts of the README; several are taken together.",
)
@click.option("--recipe", "recipe_name", metavar="NAME", help="A named recipe; see --list.")
@click.option(
    "--network",
    metavar="NAME",
    help="Instead of the recipe's: as `compare --models` takes them, one of its --list or of "
    "timm's names, resnet18 or cvm-cervix@hidden=560, say.",
)
@click.option(
    "--out",
    metavar="BUNDLE_DIR",
    type=click.Path(path_type=Path),
    help="The new folder that the bundle is written to.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's.")
@click.option("--tile-um", type=float, help="Side of the images in microns, for the bundle.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Another field.")
@click.option(
    "--pretrained",
    type=_FirstWeights(),
    metavar="FILE|timm",
    help="Safetensors of the whole network to begin with, as a bundle's model.safetensors; or the "
    "word timm: weights from ImageNet, downloaded.",
)
@click.option(
    "--pretrained-cnn",
    type=_FirstWeights(),
    metavar="FILE|timm",
    help="Likewise of timm's CNN alone.",
)
@click.option(
    "--pretrained-vt",
    type=_FirstWeights(),
    metavar="FILE|timm",
    help="Likewise of timm's visual transformer alone.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Workers on a Ray cluster.")
@click.option("--gpus", is_flag=True, help="With --workers: one GPU for each.")
@click.option(
    "--address",
    help="With --workers: of the Ray cluster; http(s)://HOST:PORT hands all of it over.",
)
@handing_over_options
@click.option("--promote", metavar="NAME", help="Register the bundle under this name.")
@click.option("--no-report", is_flag=True, help="Write no page of figures.")
@click.option("--check", is_flag=True, help="Say what is in the data, and train nothing.")
@click.option("--list", "list_recipes", is_flag=True, help="List the named recipes.")
@click.pass_context
def train(
    context: click.Context,
    /,
    data: tuple[Path, ...],
    recipe_name: str | None,
    network: str | None,
    out: Path | None,
    epochs: int | None,
    seed: int | None,
    tile_um: float | None,
    settings: tuple[str, ...],
    pretrained: First | None,
    pretrained_cnn: First | None,
    pretrained_vt: First | None,
    workers: int | None,
    gpus: bool,
    address: str | None,
    promote: str | None,
    no_report: bool,
    check: bool,
    list_recipes: bool,
    **options: Any,
) -> int | None:
    """Train a named recipe on labelled cells and write a bundle.

    The same command goes on where it was interrupted. The same cells are held back whatever
    the seed, and the model card gives the figures on them.
    """
    # torch takes seconds to import, and `cvm-batch --help` need not wait for it.
    from cvm_batch.training.datasets import load_cells
    from cvm_batch.training.elsewhere import OnRay
    from cvm_batch.training.networks import check_builds, with_network
    from cvm_batch.training.pretrained import Pretrained
    from cvm_batch.training.recipes import RECIPES, find_recipe, overridden
    from cvm_batch.training.report import check_installed
    from cvm_batch.training.run import train_bundle, train_here

    if list_recipes:
        _print_recipes(RECIPES)
        return None
    if not data:
        raise click.UsageError("Name the labelled cells with --data DIR.")
    if check:
        for line in load_cells(*data).report():
            click.echo(line)
        return None
    if recipe_name is None or out is None:
        raise click.UsageError("Name a recipe with --recipe and the bundle's folder with --out.")
    if (gpus or address) and workers is None:
        raise click.UsageError("--gpus and --address go with --workers.")
    handing = Handing.of(options)
    weights = (pretrained, pretrained_cnn, pretrained_vt)
    given = [path for path in weights if isinstance(path, Path)]
    if address is not None and is_jobs_address(address):
        return hand_over_command(context, address, handing, see=(*data, *given), write=out.parent)
    check_direct(address, handing)
    for path in given:  # not by click, since a cluster's nodes may have what this machine lacks
        if not path.is_file():
            raise click.UsageError(f"There is no file {path}, which --pretrained... names.")
    recipe = find_recipe(recipe_name)
    changes = [*settings, *_given(epochs=epochs, seed=seed, tile_um=tile_um)]
    if network is None:
        recipe = overridden(recipe, changes)
    else:
        named = f"{recipe.name}-{network}"
        recipe = replace(with_network(network, recipe, changes), name=named)
        check_builds(recipe)
    if not no_report:
        check_installed()
    if promote is not None:
        from cvm_batch.model.registry import check_name

        check_name(promote)
    train_bundle(
        data,
        recipe,
        out,
        pretrained=Pretrained(whole=pretrained, cnn=pretrained_cnn, vt=pretrained_vt),
        trainer=OnRay(workers=workers, gpus=gpus, address=address) if workers else train_here,
        report=not no_report,
        then=lambda published: _announce(published, promote),
        say=click.echo,
    )
    return None


def _announce(published: Published, promote: str | None) -> None:
    bundle = published.bundle
    click.echo(f"Bundle {bundle.spec.name} written to {bundle.path}")
    if promote is not None:
        from cvm_batch.model.registry import promote as register

        if published.fp16.fault is not None:
            raise AgreementError(
                f"{bundle.path} was not registered as {promote}. {published.fp16.fault} For that, "
                f"register it with `cvm-batch models promote {bundle.path} {promote}`."
            )
        entry = register(bundle, promote)
        click.echo(f"Registered as {promote} ({entry.digest[:12]}): submit --model {promote}")


def _given(**values: object) -> list[str]:
    return [f"{name}={value}" for name, value in values.items() if value is not None]


def _print_recipes(recipes: object) -> None:
    from collections.abc import Mapping

    from rich.table import Table

    assert isinstance(recipes, Mapping)
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "network", "input", "epochs", "batch", "learning rate", "split"):
        table.add_column(column, overflow="fold")
    for recipe in recipes.values():
        table.add_row(
            recipe.name,
            str(recipe.architecture),
            f"{recipe.preprocessing.input_px} px",
            str(recipe.epochs),
            str(recipe.batch_size),
            f"{recipe.learning_rate:g}, {recipe.schedule}",
            str(recipe.split),
        )
    STDOUT.print(table)
