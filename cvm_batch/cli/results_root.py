"""Results folders as arguments: a path, or an address on object storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cvm_batch.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


class ResultsRoot(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Converts to what `ResultsFolder` takes: a Path, or the address as text."""

    name = "path"

    def convert(
        self, value: str | Path, param: click.Parameter | None, context: click.Context | None
    ) -> Path | str:
        from cvm_batch.results.stores.store import results_root

        try:
            return results_root(value)
        except UsageError as error:
            self.fail(str(error))


def results_option(*, required: bool = False) -> Callable[[F], F]:
    """``--results``, of commands that read what was submitted."""
    return click.option(
        "--results",
        required=required,
        type=ResultsRoot(),
        metavar="DIR",
        help="The folder that was --out of a submit, or its address on object storage.",
    )
