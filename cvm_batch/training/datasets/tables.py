"""Crops with a table: DIR/cells.csv beside the images it names.

Columns: file, label, cell_id, frame; and, not used here, nucleus_x, nucleus_y, width, height.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets.folders import IMAGE_SUFFIXES
from cvm_batch.training.datasets.labelled import ImageFile, LabelledCells, labelled

TABLE_FILE = "cells.csv"
_NEEDED = ("file", "label", "cell_id", "frame")
_KNOWN = frozenset({*_NEEDED, "nucleus_x", "nucleus_y", "width", "height"})


def takes(root: Path) -> bool:
    return (root / TABLE_FILE).is_file()


def load(root: Path) -> LabelledCells:
    """Raises DataSetError."""
    table = root / TABLE_FILE
    rows = read_table(table, _NEEDED, _KNOWN)
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        if fault := _fault(row["file"], seen):
            raise DataSetError(f"{table}, row {number}: {fault}. Put the row right.")
        seen.add(row["file"])
    if absent := [row["file"] for row in rows if not (root / row["file"]).is_file()]:
        raise DataSetError(
            f"{table} names {len(absent)} files that are not there, the first "
            f"{absent[0]!r}. Copy the data set anew, or take their rows out of the table."
        )
    return labelled(
        str(root),
        [ImageFile(root, row["file"]) for row in rows],
        [row["label"] for row in rows],
        [row["frame"] for row in rows],
        grouped_by="frame",
        cell_ids=[row["cell_id"] for row in rows],
        skipped=list(_unnamed(root, {root / row["file"] for row in rows})),
    )


def _unnamed(root: Path, named: Collection[Path]) -> Iterator[tuple[str, str]]:
    """Images below ``root`` that the table passes over, and why they are skipped."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path not in named:
            yield path.relative_to(root).as_posix(), f"{TABLE_FILE} does not name it"


def read_table(table: Path, needed: Sequence[str], known: Collection[str]) -> list[dict[str, str]]:
    """The rows of a CSV table in UTF-8, none of whose ``needed`` cells is empty.

    Raises DataSetError, also for a column that is not ``known``: one that is passed over in
    silence may be the one that matters, a patient's identity, say, to be grouped by.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = reader.fieldnames or ()
            missing = [name for name in needed if name not in columns]
            unknown = [name for name in columns if name not in known]
            if missing or unknown:
                raise DataSetError(
                    f"{table} has the columns {', '.join(columns) or 'of an empty file'}; "
                    f"missing: {', '.join(missing) or 'none'}; "
                    f"unknown: {', '.join(unknown) or 'none'}. It takes {', '.join(needed)}, "
                    f"and may have {', '.join(sorted(set(known).difference(needed)))}."
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataSetError(
            f"{table} cannot be read as a CSV table in UTF-8 ({error}). Write it anew."
        ) from error
    for number, row in enumerate(rows, start=2):
        if empty := [name for name in needed if not row[name]]:
            raise DataSetError(
                f"{table}, row {number}: nothing under {', '.join(empty)}. Put the row right."
            )
    return rows


def _fault(name: str, seen: Collection[str]) -> str | None:
    file = PurePosixPath(name)
    if file.is_absolute() or ".." in file.parts:
        return f"{name!r} lies outside the data set's folder"
    if name in seen:
        return f"{name!r} is listed a second time"
    return None


def whole_number(row: Mapping[str, str], column: str, table: Path, number: int) -> int:
    """A cell of a table as an integer. Raises DataSetError."""
    try:
        return int(float(row[column]))
    except (ValueError, OverflowError) as error:
        raise DataSetError(
            f"{table}, row {number}: {row[column]!r} under {column} is no number. "
            "Put the row right."
        ) from error
