"""The value of ``--priority``: which slides, and how urgent."""

from __future__ import annotations

from typing import Any

import click

from cvm_batch.archives.tables.slides import MOST_PRIORITY


class SlidePriority(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """``PATTERN=N``, as (pattern of slide_ids, priority)."""

    name = "PATTERN=N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        pattern, _, number = value.rpartition("=")
        try:
            priority = int(number)
        except ValueError:
            priority = MOST_PRIORITY + 1
        if not pattern or abs(priority) > MOST_PRIORITY:
            self.fail(
                f"{value!r} is no pattern of slide_ids, '=' and a whole number: 'urgent/*=9'."
            )
        return pattern, priority
