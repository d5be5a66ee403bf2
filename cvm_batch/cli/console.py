"""Where commands print: results to stdout, progress and remarks to stderr."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

STDOUT = Console(highlight=False, markup=False, emoji=False)
STDERR = Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Print for a script: never wrapped, never coloured."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def printable(text: str) -> str:
    """``text`` on one line; slide names may hold newlines and control characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
