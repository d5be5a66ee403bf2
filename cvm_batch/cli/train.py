"""`cvm-batch train`: from labelled cells to a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click


@click.command()
@click.option(
    "--data",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Labelled cells: a folder with cells.csv in it, or one sub-folder for each class.",
)
@click.option("--recipe", "recipe_name", required=True, metavar="NAME", help="A named recipe.")
@click.option(
    "--out",
    required=True,
    metavar="BUNDLE_DIR",
    type=click.Path(path_type=Path),
    help="The new folder that the bundle is written to.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's.")
def train(data: Path, recipe_name: str, out: Path, epochs: int | None, seed: int | None) -> None:
    """Train a named recipe on labelled cells and write a bundle.

    Cells of one microscope frame stay together, the same frames are held back whatever
    the seed, and the model card gives the figures on them.
    """
    # torch takes seconds to import, and `cvm-batch --help` need not wait for it.
    from cvm_batch.training.recipes import find_recipe
    from cvm_batch.training.run import train_bundle

    recipe = find_recipe(recipe_name)
    recipe = replace(
        recipe,
        epochs=recipe.epochs if epochs is None else epochs,
        seed=recipe.seed if seed is None else seed,
    )
    published = train_bundle(data, recipe, out, say=click.echo)
    click.echo(f"Bundle {published.bundle.spec.name} written to {published.bundle.path}")
