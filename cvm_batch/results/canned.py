"""Queries that have a name: one file of SQL each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class CannedQuery:
    name: str
    about: str
    """One line."""
    sql: str


def canned_queries() -> dict[str, CannedQuery]:
    """By name. The first line of each is a comment on what it answers."""
    return {name: _read(name) for name in ("worklist", "failures", "throughput", "drift")}


def _read(name: str) -> CannedQuery:
    sql = (resources.files(__package__) / "queries" / f"{name}.sql").read_text()
    return CannedQuery(name, sql.partition("\n")[0].removeprefix("-- "), sql)
