"""Files that hold cells of many slides, as one Arrow data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import FileSystem

_FORMAT = ds.ParquetFileFormat()
_FILE = pa.field("file", pa.int32())


class Holding(NamedTuple):
    """A slide whose cells are in a file, as far as its newest row says."""

    slide_id: str
    path: str


class SharedFiles(ds.FileSystemDataset):  # type: ignore[misc]  # pyarrow is without types
    """Each file once, its rows with the number of the file in the column ``file``.

    Rows of slides for which no holding names the file are not left out: see `named`. But where
    a filter tells the slides, only the files that hold them are opened. Arrow cannot know: what
    it is told of a file before it opens it is a value, or a range, not one of several values.
    """

    _holdings: ds.FileSystemDataset
    """A fragment for each holding; never read."""

    @classmethod
    def of(cls, holdings: Sequence[Holding], schema: pa.Schema, filesystem: FileSystem) -> Self:
        """Opens nothing."""
        schema = schema.append(_FILE)
        numbers = _numbers(holdings)
        files = [
            _FORMAT.make_fragment(path, filesystem, pc.field("file") == number)
            for path, number in numbers.items()
        ]
        made = cls(files, schema, _FORMAT, filesystem)
        made._holdings = ds.FileSystemDataset(
            [
                _FORMAT.make_fragment(path, filesystem, pc.field("slide_id") == slide_id)
                for slide_id, path in holdings
            ],
            schema,
            _FORMAT,
            filesystem,
        )
        return made

    def scanner(self, **options: Any) -> ds.Scanner:
        """What DuckDB calls, with the columns and the filter of a query."""
        holding = {each.path for each in self._holdings.get_fragments(options.get("filter"))}
        files = [each for each in self.get_fragments() if each.path in holding]
        chosen = ds.FileSystemDataset(files, self.schema, self.format, self.filesystem)
        # Footers of ten thousand files are a gigabyte.
        return chosen.scanner(**options, cache_metadata=False)


def named(holdings: Sequence[Holding]) -> pa.Table:
    """(slide_id, file) of each holding: of the rows of `SharedFiles`, those that count."""
    numbers = _numbers(holdings)
    columns = {
        "slide_id": [slide_id for slide_id, _ in holdings],
        "file": pa.array([numbers[path] for _, path in holdings], _FILE.type),
    }
    return pa.table(columns, pa.schema([pa.field("slide_id", pa.string()), _FILE]))


def _numbers(holdings: Sequence[Holding]) -> dict[str, int]:
    return {path: at for at, path in enumerate(dict.fromkeys(path for _, path in holdings))}
