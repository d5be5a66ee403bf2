"""Which slides a command opens, and the options that say how."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cvm_batch.archives.opening import ArrayNames, OpenOptions
from cvm_batch.archives.scale import LEAST_MPP, MOST_MPP, sensible
from cvm_batch.cli.console import STDERR
from cvm_batch.errors import NoSlidesError, SlideError
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.archives.tables.slides import ListedSlide
    from cvm_batch.model.bundle import BundleSpec

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

_ARRAYS = tuple(ArrayNames.__dataclass_fields__)


class _Mpp(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    name = "UM[,UM]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            x, y = (float(part) for part in (value.split(",") * 2)[:2])
            if value.count(",") > 1:
                raise ValueError
        except ValueError:
            self.fail(f"{value!r} is not one number, or two for x and y: 0.25 or 0.25,0.26.")
        if not sensible((x, y)):
            self.fail(f"{value!r} is not from {LEAST_MPP:g} to {MOST_MPP:g} microns per pixel.")
        return x, y


def _array_names(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, str]:
    names: dict[str, str] = {}
    for given in value:
        what, _, name = given.partition("=")
        if what not in _ARRAYS or not name:
            known = ", ".join(_ARRAYS)
            raise click.BadParameter(f"{given!r}: give one of {known}, '=' and a name.")
        names[what] = name
    return names


def opening_options(command: F) -> F:
    """The options of every command that opens slides."""
    options = [
        click.option(
            "--mpp",
            type=_Mpp(),
            help="Microns per level-0 pixel, in place of what the slides say of themselves.",
        ),
        click.option(
            "--array",
            "arrays",
            multiple=True,
            metavar="WHAT=NAME",
            callback=_array_names,
            help=f"Name of a zarr array, as tiles=images/rgb; WHAT is {', '.join(_ARRAYS)}.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def reading_options(command: F) -> F:
    """Those, and what else is a bundle's to say where one is at hand."""
    tile_um = click.option(
        "--tile-um",
        type=click.FloatRange(0, min_open=True),
        help="Side of a tile in microns, to crop whole slides and to check ready tiles.",
    )
    return opening_options(tile_um(command))


def opened_for(options: Mapping[str, Any]) -> OpenOptions:
    """What `reading_options` say. Whole slides are read at their finest level."""
    return OpenOptions(
        tile_um=options["tile_um"],
        least_px=sys.maxsize,
        mpp=options["mpp"],
        arrays=ArrayNames(**options["arrays"]),
    )


def opened_for_model(spec: BundleSpec, options: Mapping[str, Any]) -> OpenOptions:
    """What `opening_options` say, for tiles that a model is to classify."""
    return OpenOptions(
        tile_um=spec.tile_um,
        least_px=spec.preprocessing.input_px,
        mpp=options["mpp"],
        arrays=ArrayNames(**options["arrays"]),
    )


def slides_at(paths: Sequence[str], *, needed: bool = True) -> tuple[ListedSlide, ...]:
    """The slides at ``paths``; standard error is told of all else there.

    Raises UsageError, of which NoSlidesError where slides are ``needed`` and there are none.
    """
    from cvm_batch.archives.discovery import discover

    found = discover(paths)
    for uri, why in found.ignored:
        STDERR.print(f"Ignored: {printable(uri)}: {why}", soft_wrap=True)
    if needed and not found.slides:
        raise NoSlidesError(f"No slides found in {', '.join(paths)}. Check the path.")
    return found.slides


def each_slide(
    look: Callable[[ListedSlide], R],
    slides: Sequence[ListedSlide],
    *,
    timeout: float,
    jobs: int | None = None,
) -> Iterator[tuple[ListedSlide, R | SlideError]]:
    """What ``look`` finds of each slide, in processes that may die; whatever goes wrong is its own.

    ``timeout``: seconds for one slide. Raises RunAbortedError.
    """
    from cvm_batch.archives.places.files import as_slide_error
    from cvm_batch.cpus import usable_cpus
    from cvm_batch.isolation import Done, run_isolated

    outcomes = run_isolated(
        look,
        slides,
        jobs=jobs or usable_cpus(),
        timeout=timeout,
        name=lambda slide: slide.address.uri,
    )
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Done):
                yield outcome.item, outcome.result
            else:
                yield outcome.item, as_slide_error(outcome.error, outcome.item.address.uri)
