"""Files that hold cells of many slides, as one Arrow data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import FileSystem

_FORMAT = ds.ParquetFileFormat()
_FILE = pa.field("file", pa.int32())


class Holding(NamedTuple):
    """A file that holds cells of a slide, as its newest row says."""

    slide_id: str
    path: str


class SharedFiles(ds.FileSystemDataset):  # type: ignore[misc]  # pyarrow is without types
    """Each file once, its rows with the number of the file in the column ``file``.

    Rows of slides for which no holding names the file are not left out: `holdings` tells them.
    But where a filter tells the slides, only the files that hold them are opened. Arrow cannot
    know: what it is told of a file before it opens it is a value, or a range, not some values.
    """

    _holdings: Sequence[Holding]

    @classmethod
    def of(cls, holdings: Sequence[Holding], schema: pa.Schema, filesystem: FileSystem) -> Self:
        """Opens nothing."""
        schema = schema.append(_FILE)
        files = [
            _FORMAT.make_fragment(path, filesystem, pc.field(_FILE.name) == number)
            for path, number in _numbers(holdings).items()
        ]
        made = cls(files, schema, _FORMAT, filesystem)
        made._holdings = holdings
        return made

    def holdings(self) -> pa.Table:
        """``slide_id`` and ``file``: of the rows in the files, those that count."""
        numbers = _numbers(self._holdings)
        columns = [
            pa.array([slide_id for slide_id, _ in self._holdings], pa.string()),
            pa.array([numbers[path] for _, path in self._holdings], _FILE.type),
        ]
        return pa.table(columns, ["slide_id", _FILE.name])

    def scanner(self, **options: Any) -> ds.Scanner:
        """What DuckDB calls, with the columns and the filter of a query; once for each scan."""
        files = self.get_fragments()
        if (where := options.get("filter")) is not None:
            holding = {each.path for each in self._by_slide.get_fragments(where)}
            files = (each for each in files if each.path in holding)
        # Fragments of its own: a scan takes the footer away from one that it is done with, as
        # those of ten thousand files are a gigabyte, and another would crash over that.
        fresh = [
            self.format.make_fragment(each.path, self.filesystem, each.partition_expression)
            for each in files
        ]
        scanned = ds.FileSystemDataset(fresh, self.schema, self.format, self.filesystem)
        return scanned.scanner(**options, cache_metadata=False)

    @cached_property
    def _by_slide(self) -> ds.FileSystemDataset:
        """A fragment for each holding; never read."""
        fragments = [
            self.format.make_fragment(path, self.filesystem, pc.field("slide_id") == slide_id)
            for slide_id, path in self._holdings
        ]
        return ds.FileSystemDataset(fragments, self.schema, self.format, self.filesystem)


def _numbers(holdings: Sequence[Holding]) -> dict[str, int]:
    """Of the files, each once."""
    return {path: at for at, path in enumerate(dict.fromkeys(path for _, path in holdings))}
