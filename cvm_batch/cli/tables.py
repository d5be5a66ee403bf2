"""Arrow tables as text, JSON, CSV and Parquet. Names of slides are anybody's: text is made safe."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len

from cvm_batch.errors import UsageError
from cvm_batch.texts import printable

_MAX_WIDTH = 60
#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@")
_NOTHING = "-"
#: As objects of Python's, which take more memory than in a table.
_ROWS_AT_ONCE = 10_000


def as_text(table: pa.Table) -> str:
    """Aligned columns for people; long values are cut, and null is a dash."""
    aligned = [
        _aligned(
            [printable(field.name), *map(_shown_as(field.type), values)],
            right=_is_number(field.type),
        )
        for field, values in zip(table.schema, _columns(table), strict=True)
    ]
    return "".join(f"{'  '.join(line).rstrip()}\n" for line in zip(*aligned, strict=True))


def as_json(table: pa.Table) -> str:
    """A list of objects. Pure ASCII: nothing in it can turn a terminal's text around."""
    return json.dumps(as_objects(table), indent=2) + "\n"


def as_csv(table: pa.Table) -> str:
    """For spreadsheets: control characters are spelt out, and no text is taken for a formula.

    Maps and lists are JSON. For exact text take JSON or Parquet.
    """
    return "".join(csv_pieces(table))


def csv_pieces(table: pa.Table) -> Iterator[str]:
    """The same in turn, for what is large."""
    yield _csv([map(_safe, table.column_names)])
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns = ([_safe(_plain(value)) for value in values] for values in _columns(batch))
        yield _csv(zip(*columns, strict=True))


def as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


FORMATS: dict[str, Callable[[pa.Table], str | bytes]] = {
    "table": as_text,
    "csv": as_csv,
    "json": as_json,
    "parquet": as_parquet,
}


def write_whole(path: Path, data: str | bytes) -> None:
    """Write the file, in place of an older one, whole or not at all. Raises UsageError."""
    with whole_file(path) as file:
        file.write(data if isinstance(data, bytes) else data.encode())


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of an older one in the end. Raises UsageError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with beside.open("xb") as file:
                yield file
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def as_objects(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [_plain(row) for row in table.to_pylist(maps_as_pydicts="strict")]


def _csv(lines: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _columns(table: pa.Table | pa.RecordBatch) -> list[list[Any]]:
    return [column.to_pylist(maps_as_pydicts="strict") for column in table.columns]


def _plain(value: Any) -> Any:
    """What JSON has; what is no number is null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):  # DuckDB's sums of integers
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _safe(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value)
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(_FORMULA) else value)


def _shown_as(kind: pa.DataType) -> Callable[[Any], str]:
    """Nearly all columns are text, counts or figures, for which little has to be asked."""
    if pa.types.is_integer(kind):
        return lambda value: _NOTHING if value is None else str(value)
    if pa.types.is_floating(kind):
        return lambda value: (
            f"{value:.4g}" if value is not None and math.isfinite(value) else _NOTHING
        )
    if pa.types.is_string(kind):
        return lambda value: _NOTHING if value is None else _cut(printable(value))
    return _shown


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    value = _plain(value)
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        value = ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(_shown, value))
    return _cut(printable(str(value)))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_WIDTH else f"{text[: _MAX_WIDTH - 1]}…"


def _aligned(column: Sequence[str], *, right: bool) -> list[str]:
    widths = [len(text) if text.isascii() else cell_len(text) for text in column]
    width = max(widths)
    padded = zip(column, (" " * (width - each) for each in widths), strict=True)
    return [pad + text if right else text + pad for text, pad in padded]


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
