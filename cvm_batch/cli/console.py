"""Where commands print: results to stdout, progress and remarks to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console

#: Where nobody looks on, lines are as long as they are: grep wants them whole.
_UNWRAPPED = 1000


def _console(*, stderr: bool) -> Console:
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if is_terminal else _UNWRAPPED
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


STDOUT = _console(stderr=False)
STDERR = _console(stderr=True)


def print_json(value: Any) -> None:
    """Print for a script: never wrapped, never coloured."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
