"""Which slides to look at first, and which ones say nothing and stand apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import pyarrow as pa

from cvm_batch.errors import UsageError
from cvm_batch.results.reading import Results
from cvm_batch.results.schemas import Adequacy, Status


@dataclass(frozen=True)
class Measure:
    """What slides are ranked by: ``slide_score``, or the fraction or count of a class group."""

    kind: str
    """``slide_score``, ``fraction`` or ``count``."""
    group: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``slide_score``, ``fraction:GROUP`` or ``count:GROUP``. Raises UsageError."""
        kind, colon, group = text.partition(":")
        if (kind in ("fraction", "count") and group) or (kind == "slide_score" and not colon):
            return cls(kind, group or None)
        raise UsageError(
            f"Slides cannot be ranked by {text!r}: give slide_score, fraction:GROUP or "
            "count:GROUP, such as fraction:hsil_plus."
        )

    def __str__(self) -> str:
        return f"{self.kind}:{self.group}" if self.group else self.kind


SLIDE_SCORE = Measure("slide_score")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A slide of the worklist."""

    list: str
    """The field of `Worklist` that it is in."""
    slide_id: str
    run_id: str
    status: Status
    reason: str | None
    detail: str | None
    adequacy: Adequacy
    preparation: str | None
    rank: int | None
    """1 is the most suspicious of ``ranks``; None unless ranked."""
    ranks: int | None
    quintile: int | None
    """1 is the most suspicious fifth; None unless ranked."""
    value: float | None
    """The measure that slides are ranked by; None unless complete, or where the bundle lacks it."""
    slide_score: float | None
    top_grade: str | None
    """The most severe class among the 20 most suspicious cells."""
    cells_expected: int | None
    cells_classified: int | None
    cells_unreadable: int | None
    counts: Mapping[str, int | None]
    """Cells by class group; of an incomplete slide, at least so many. Empty where it failed."""
    negative: bool
    """Ranked, with a slide score below the threshold."""
    quality_control: bool
    """A negative that is drawn to be looked at nevertheless."""
    cells_files: Sequence[str]
    tops_files: Sequence[str]

    @property
    def fractions(self) -> Mapping[str, float | None]:
        """Shares of the slide's cells by class group; none unless complete."""
        if self.status is not Status.COMPLETE or not self.cells_classified:
            return {}
        cells = self.cells_classified
        return {g: None if n is None else n / cells for g, n in self.counts.items()}


@dataclass(frozen=True, kw_only=True)
class Worklist:
    """Every slide is in exactly one list, but for ``quality_control``, a part of ``ranked``.

    Each list begins with what is most suspicious.
    """

    measure: Measure
    urgent_incomplete: Sequence[Entry]
    """Not read whole, and cells of the primary group were found: to be looked at first."""
    ranked: Sequence[Entry]
    """Complete, with enough cells as far as that is known."""
    unranked: Sequence[Entry]
    """Complete, of a bundle that does not define the measure."""
    scant: Sequence[Entry]
    """Complete, but too few cells to be called negative."""
    incomplete: Sequence[Entry]
    """Not read whole, and nothing was found in what could be read."""
    failed: Sequence[Entry]
    quality_control: Sequence[Entry]
    """At least the asked share of the negatives, drawn by the seed."""

    @classmethod
    def read(
        cls,
        results: Results,
        measure: Measure = SLIDE_SCORE,
        *,
        run_id: str | None = None,
        negative_below: float = 0.5,
        quality_control_share: float = 0.1,
        seed: int = 0,
    ) -> Self:
        """Of the newest row of every slide, or of the rows of one run.

        Slides with a slide score below ``negative_below`` count as negatives for quality
        control, whatever they are ranked by. Raises UsageError where no slide has the group of
        ``measure`` or the run is unknown, ResultsError where a file is damaged.
        """
        table = results.query(
            "FROM worklist(measure := $measure, run := $run, negative_below := $below, "
            "quality_control_share := $share, seed := $seed)",
            {
                "measure": str(measure),
                "run": run_id,
                "below": negative_below,
                "share": quality_control_share,
                "seed": seed,
            },
        )
        lists: dict[str, list[Entry]] = defaultdict(list)
        for row in table.to_pylist(maps_as_pydicts="strict"):
            lists[row["list"]].append(_entry(row))
        found = cls(
            measure=measure,
            urgent_incomplete=lists["urgent_incomplete"],
            ranked=lists["ranked"],
            unranked=lists["unranked"],
            scant=lists["scant"],
            incomplete=lists["incomplete"],
            failed=lists["failed"],
            quality_control=[entry for entry in lists["ranked"] if entry.quality_control],
        )
        _check(results, found, run_id)
        return found

    @property
    def entries(self) -> list[Entry]:
        """All slides, in the order in which to look at them."""
        return [
            *self.urgent_incomplete,
            *self.ranked,
            *self.unranked,
            *self.scant,
            *self.incomplete,
            *self.failed,
        ]

    def to_table(self, entries: Sequence[Entry] | None = None) -> pa.Table:
        """A row per slide, in that order, or of some of them; columns per class group."""
        entries = self.entries if entries is None else entries
        columns = {
            name: pa.array([getattr(entry, name) for entry in entries], kind)
            for name, kind in _COLUMNS.items()
        }
        for group in self.groups:
            counts = [entry.counts.get(group) for entry in entries]
            fractions = [entry.fractions.get(group) for entry in entries]
            columns[group] = pa.array(counts, pa.int64())
            columns[f"{group}_fraction"] = pa.array(fractions, pa.float64())
        return pa.table(columns)

    def without_entries(self) -> Self:
        """The same with nothing in its lists."""
        nothing: dict[str, Any] = dict.fromkeys((one.name for one in fields(self)), ())
        return replace(self, **nothing | {"measure": self.measure})

    @property
    def groups(self) -> list[str]:
        """The class groups that any slide counts."""
        return list(dict.fromkeys(group for entry in self.entries for group in entry.counts))


_COLUMNS = {
    "list": pa.string(),
    "rank": pa.int64(),
    "ranks": pa.int64(),
    "quintile": pa.int64(),
    "slide_id": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "adequacy": pa.string(),
    "preparation": pa.string(),
    "value": pa.float64(),
    "slide_score": pa.float64(),
    "top_grade": pa.string(),
    "cells_expected": pa.int64(),
    "cells_classified": pa.int64(),
    "cells_unreadable": pa.int64(),
    "negative": pa.bool_(),
    "quality_control": pa.bool_(),
    "run_id": pa.string(),
    "detail": pa.string(),
}


def _entry(row: dict[str, Any]) -> Entry:
    row["status"] = Status(row["status"])
    row["adequacy"] = Adequacy(row["adequacy"])
    row["counts"] = row["counts"] or {}
    return Entry(**row)


def _check(results: Results, found: Worklist, run_id: str | None) -> None:
    group = found.measure.group
    if group and found.entries and group not in found.groups:
        raise UsageError(
            f"No slide counts the class group {group!r}; there are: "
            f"{', '.join(found.groups) or 'none'}."
        )
    if run_id and not found.entries:
        known = results.query("SELECT run_id FROM runs WHERE run_id = $run", {"run": run_id})
        if not known.num_rows:
            raise UsageError(
                f"There is no run {run_id!r}: `cvm-batch list` with the folder shows which."
            )
