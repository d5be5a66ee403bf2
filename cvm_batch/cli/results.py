"""Results folders as arguments: a path, or an address on object storage."""

from __future__ import annotations

from pathlib import Path

import click

from cvm_batch.errors import UsageError


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
