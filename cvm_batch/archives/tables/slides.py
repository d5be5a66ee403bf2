"""The manifest: the table by which a laboratory lists a night's slides.

CSV in UTF-8, with commas or semicolons, or Parquet. A row is a slide. Columns:

- ``slide_id`` and ``uri``, in every row. A relative uri is relative to the table.
- ``cells_uri``: the slide's cells table, where it does not lie beside it.
- ``priority``: a whole number; higher goes first, none is 0.
- ``preparation``: see `Preparation`.
- ``cells_expected``: how many cells were counted elsewhere. With 0, which a detection that
  failed may leave behind, the slide fails, not the night.
- ``sha256``: of the slide's file, or of a packed slide's manifest.

Further columns are carried into the results as text. Spaces around names and values do
not count, and rows without any value are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.limits import MAX_TABLE_BYTES, MAX_TILES
from cvm_batch.archives.places.place import place_of
from cvm_batch.archives.tables.reading import (
    as_text,
    check_columns,
    check_rows,
    csv_rows,
    parquet_columns,
    reading_table,
)
from cvm_batch.errors import SlideError, SlideIdCollisionError, UsageError

#: Some hundred slides are a night, so this is a national archive over many years.
MAX_SLIDES = 1_000_000

_NEEDED = ("slide_id", "uri")
_KNOWN = (*_NEEDED, "cells_uri", "priority", "preparation", "cells_expected", "sha256")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: Spreadsheets write whole numbers as 3.0 or 3,0 too. Three digits may be thousands.
_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:[.,]0{1,2})?")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
#: Of `ListedSlide.priority`: 32 bits hold it in the results.
MOST_PRIORITY = 2**31 - 1
_BATCH_ROWS = 10_000
#: Characters of a wrong value in a message.
_MOST_SHOWN = 80

Row = Sequence[str | None]


class Preparation(StrEnum):
    """How a slide was made, which decides how many cells are enough."""

    CONVENTIONAL = "conventional"
    LIQUID_BASED = "liquid_based"


@dataclass(frozen=True, kw_only=True)
class ListedSlide:
    """A slide that a run was asked for, and what is said of it beyond its address."""

    slide_id: str
    address: SlideAddress
    priority: int = 0
    """Higher goes first."""
    preparation: Preparation | None = None
    further: Mapping[str, str] = field(default_factory=dict)
    """Columns that only pass through, by name; empty values are left out."""


def read_slides_table(data: bytes, name: str, where: str, folder: str) -> tuple[ListedSlide, ...]:
    """Read a manifest, in its order.

    ``name`` says by its suffix what it is, ``where`` is for messages, ``folder`` is the
    absolute path or the address that relative uris are relative to. Raises UsageError,
    which names row and column; SlideIdCollisionError where two rows have one slide_id.
    """
    try:
        with reading_table(where, "a table of slides"):
            header, rows = _read(data, name, where)
            listing = _Listing(where, folder, header)
            for number, row in enumerate(rows, 1):
                check_rows(number, MAX_SLIDES, where)
                listing.add(number, row)
    except SlideError as error:  # a manifest is no slide: without it there is no run
        raise UsageError(str(error)) from error
    if not listing.slides:
        raise UsageError(f"{where} lists no slide. Check that its export has ended.")
    return tuple(listing.slides)


def _read(data: bytes, name: str, where: str) -> tuple[Sequence[str], Iterable[Row]]:
    """The header, and all other rows. Raises what `reading_table` knows, or SlideError."""
    if len(data) > MAX_TABLE_BYTES:
        raise UsageError(
            f"{where} has {len(data)} bytes, more than the {MAX_TABLE_BYTES} of a table of "
            "slides. Split it."
        )
    if PurePath(name).suffix.lower() == ".parquet":
        return _read_parquet(data, where)
    rows = csv_rows(data, _delimiter(data))
    return _header(rows), rows


def _delimiter(data: bytes) -> str:
    """The one by which more columns are known: it depends on the spreadsheet's country."""
    # Not strict: with the wrong one, quotes are in the wrong places.
    headers = {delimiter: _header(csv_rows(data, delimiter, strict=False)) for delimiter in ",;"}
    return max(headers, key=lambda found: len({*map(_column, headers[found])} & {*_KNOWN}))


def _header(rows: Iterator[list[str]]) -> list[str]:
    return next((row for row in rows if row), [])


def _read_parquet(data: bytes, where: str) -> tuple[Sequence[str], Iterable[Row]]:
    columns = parquet_columns(data, where, most_rows=MAX_SLIDES, most_bytes=MAX_TABLE_BYTES)
    texts: list[pa.LargeStringArray] = []
    for name, column in columns.items():
        try:
            room = MAX_TABLE_BYTES - sum(text.nbytes for text in texts)
            texts.append(as_text(column, room, where))
        except pa.ArrowNotImplementedError as error:
            raise UsageError(
                f"{where}: column {name!r} holds {column.type}, which is no text. Leave it out."
            ) from error
    return list(columns), _rows(pa.table(texts, names=list(columns)))


def _rows(table: pa.Table) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class _Listing:
    """Takes the rows of a manifest one by one, and holds each against those before it."""

    def __init__(self, where: str, folder: str, header: Sequence[str]) -> None:
        """Raises UsageError or BadFormatError."""
        self.slides: list[ListedSlide] = []
        self._where = where
        self._folder = folder
        self._columns = [_column(name) for name in header]
        self._rows_by_id: dict[str, int] = {}
        self._rows_by_uri: dict[tuple[str, str | None], int] = {}
        for needed in _NEEDED:
            if needed not in self._columns:
                raise UsageError(
                    f"{where} has no column {needed!r}; its columns are "
                    f"{', '.join(map(repr, header))[:_MOST_SHOWN]}. Rename or add it."
                )
        check_columns([name for name in self._columns if name], where)

    def add(self, number: int, row: Row) -> None:
        """Raises UsageError."""
        values = self._values(number, row)
        if not values:
            return
        for needed in _NEEDED:
            if needed not in values:
                raise self._wrong(number, needed, "has no value. Fill it in, or remove the row.")
        slide = ListedSlide(
            slide_id=values["slide_id"],
            address=SlideAddress(
                uri=self._parsed(number, values, "uri", self._absolute),
                cells_uri=self._parsed(number, values, "cells_uri", self._absolute),
                sha256=self._parsed(number, values, "sha256", _sha256),
                cells_expected=self._parsed(number, values, "cells_expected", _cells_expected),
            ),
            priority=self._parsed(number, values, "priority", _priority) or 0,
            preparation=self._parsed(number, values, "preparation", _preparation),
            further={name: value for name, value in values.items() if name not in _KNOWN},
        )
        self._check_distinct(number, slide)
        self.slides.append(slide)

    def _values(self, number: int, row: Row) -> dict[str, str]:
        """By column, without those that are empty."""
        stripped = [(value or "").strip(" \t") for value in row]
        if not any(stripped):
            return {}
        if len(row) != len(self._columns):
            raise UsageError(
                f"{self._where} has {len(row)} values in data row {number}, but "
                f"{len(self._columns)} columns. Put values that hold the delimiter in quotes."
            )
        values = {name: value for name, value in zip(self._columns, stripped, strict=True) if value}
        if "" in values:
            raise self._wrong(number, "", "holds a value, but the column has no name. Name it.")
        return values

    def _parsed(
        self, number: int, values: Mapping[str, str], column: str, parse: Callable[[str], Any]
    ) -> Any:
        """None where there is no value."""
        value = values.get(column)
        try:
            return None if value is None else parse(value)
        except (ValueError, UsageError) as error:
            raise self._wrong(number, column, str(error)) from error

    def _wrong(self, number: int, column: str, what: str) -> UsageError:
        return UsageError(f"{self._where}, data row {number}, column {column!r}: {what}")

    def _check_distinct(self, number: int, slide: ListedSlide) -> None:
        first = self._rows_by_id.setdefault(slide.slide_id, number)
        if first != number:
            raise SlideIdCollisionError(
                f"{self._where} has the slide_id {slide.slide_id!r} in data rows {first} and "
                f"{number}. Give each slide its own."
            )
        address = slide.address
        first = self._rows_by_uri.setdefault((address.uri, address.cells_uri), number)
        if first != number:
            raise UsageError(
                f"{self._where} lists {address.uri} with the same cells in data rows {first} and "
                f"{number}: they would count twice. Remove one, or correct its uri or cells_uri."
            )

    def _absolute(self, uri: str) -> str:
        if "\0" in uri:
            raise ValueError("it holds a NUL character, as no name does. Write it again.")
        if not (_SCHEME.match(uri) or os.path.isabs(uri)):
            uri = _joined(self._folder, uri)
        return place_of(uri).uri


def _column(name: str) -> str:
    """What a column is called here.

    Known ones in any case and with or without underscores: one that is passed over as a
    further column would leave a digest unchecked.
    """
    stripped = name.strip()
    return next((known for known in _KNOWN if _key(known) == _key(stripped)), stripped)


def _key(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _joined(folder: str, name: str) -> str:
    if not _SCHEME.match(folder):
        return os.path.join(folder, name)
    scheme, _, path = folder.partition("://")
    parts = path.rstrip("/").split("/")
    for part in name.split("/"):
        if part not in ("", ".", ".."):
            parts.append(part)
        elif part == "..":
            parts.pop()
            if not parts:
                raise ValueError(f"{name!r} leads out of {folder}. Write the whole address.")
    return f"{scheme}://{'/'.join(parts)}"


def _whole(text: str) -> int:
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:_MOST_SHOWN]!r} is no whole number. Write digits only.")
    return int(match[1])


def _priority(text: str) -> int:
    priority = _whole(text)
    if abs(priority) > MOST_PRIORITY:
        raise ValueError(f"{priority} is beyond {MOST_PRIORITY}. Small numbers will do.")
    return priority


def _cells_expected(text: str) -> int:
    cells = _whole(text)
    if not 0 <= cells <= MAX_TILES:
        raise ValueError(f"{cells} is no number of cells from 0 to {MAX_TILES}. Correct it.")
    return cells


def _sha256(text: str) -> str:
    match = _DIGEST.fullmatch(text.lower())
    if match is None:
        raise ValueError(
            f"{text[:_MOST_SHOWN]!r} is not the 64 hexadecimal digits of a SHA-256. Copy what "
            "sha256sum prints."
        )
    return match[1]


_PREPARATIONS = {_key(preparation): preparation for preparation in Preparation} | {
    "conventionalsmear": Preparation.CONVENTIONAL,
    "lbc": Preparation.LIQUID_BASED,
    "liquidbasedcytology": Preparation.LIQUID_BASED,
    "surepath": Preparation.LIQUID_BASED,
    "thinprep": Preparation.LIQUID_BASED,
}


def _preparation(text: str) -> Preparation:
    preparation = _PREPARATIONS.get(_key(text))
    if preparation is None:
        raise ValueError(
            f"{text[:_MOST_SHOWN]!r} is no preparation that is known: write "
            f"{' or '.join(Preparation)}, or nothing."
        )
    return preparation
