"""The end of packing a slide: its other columns, its documents, its manifest, its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cvm_batch.archives.formats import identity_of
from cvm_batch.archives.packing.arrays import (
    CELL_ID,
    GROUP_DOCUMENT,
    PADDED,
    READABLE,
    SIZE,
    XY,
    Column,
    group_document,
    tiles_column,
)
from cvm_batch.archives.packing.chunks import ChunkFolder, ChunkRecord, describe_file
from cvm_batch.archives.packing.files import commit, flush, flush_all, remove, write_whole, writing
from cvm_batch.archives.packing.manifest import MANIFEST_FILE, PackedFile, PackManifest
from cvm_batch.archives.packing.targets import PackRecord, PackTarget
from cvm_batch.archives.packing.worker import Plan, PortionDone, check_unchanged
from cvm_batch.errors import CommitError

Rows = Callable[[ChunkRecord], Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A slide whose chunks of tiles are all there."""

    plan: Plan
    folder: ChunkFolder
    done: PortionDone
    """Of all portions together."""


def finish(completion: Completion) -> PackRecord:
    """Put a slide in its place. Raises InputChangedError, other SlideErrors, or CommitError."""
    plan, folder = completion.plan, completion.folder
    target = plan.order.target
    if not folder.archive.is_dir() and (record := target.finished(plan.source)) is not None:
        return record  # by a process that died just after
    now = identity_of(plan.order.address, plan.order.options)
    check_unchanged(now, plan.info.identity, plan.order.address)
    with writing(target.partial):
        writer = _Writer(folder)
        _write_columns(writer, completion)
        writer.write(GROUP_DOCUMENT, group_document(plan.info.mpp))
        manifest = PackManifest(tiles=plan.info.tiles, files=writer.files)
        data = manifest.to_bytes()
        commit(folder.archive / MANIFEST_FILE, data, folder.path / MANIFEST_FILE)
        flush_all(folder.archive)
        record = PackRecord(
            source=plan.source,
            digest=manifest.digest,
            tiles=manifest.tiles,
            unreadable=completion.done.unreadable,
            size=len(data) + sum(file.size for file in manifest.files.values()),
            faults=completion.done.faults,
        )
        _publish(folder, target, record)
    return record


class _Writer:
    """Writes into an archive, and keeps what its manifest must say."""

    def __init__(self, folder: ChunkFolder) -> None:
        self.files: dict[str, PackedFile] = {}
        self._folder = folder

    def write(self, name: str, data: bytes, *, chunk: bool = False) -> None:
        path = self._folder.archive / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, data, self._folder.path / "file")
        self.files[name] = describe_file(data, chunk=chunk)


def _write_columns(writer: _Writer, completion: Completion) -> None:
    """All arrays. Records are read by and by, as those of a large slide fill the memory."""
    folder, layout = completion.folder, completion.folder.layout
    columns = _columns(completion)
    rows_in_chunk = min(layout.tiles, layout.chunk * layout.chunks_of_rows)
    firsts = range(0, layout.chunks, layout.chunks_of_rows)
    for number, first in enumerate(firsts):
        chunks = range(first, min(first + layout.chunks_of_rows, layout.chunks))
        records = list(_records(folder, chunks))
        writer.files.update(
            (folder.name(chunk), record.file) for chunk, record in zip(chunks, records, strict=True)
        )
        for column, rows_of in columns:
            rows = [row for record in records for row in rows_of(record)]
            data = column.encode(rows, rows_in_chunk)
            writer.write(column.chunk_name(number), data, chunk=True)
    tiles = tiles_column(layout)
    writer.write(_document(tiles), tiles.document(layout.tiles, layout.chunk))
    for column, _ in columns:
        writer.write(_document(column), column.document(layout.tiles, rows_in_chunk))


def _records(folder: ChunkFolder, chunks: range) -> Iterator[ChunkRecord]:
    for chunk in chunks:
        record = folder.record(chunk)
        if record is None:
            raise CommitError(
                f"{folder.path} has lost what was packed of chunk {chunk}: something removes or "
                "damages files there. Stop it, and give the same command again."
            )
        yield record


def _columns(completion: Completion) -> list[tuple[Column, Rows]]:
    """Those that the slide needs, and where their rows stand."""
    done = completion.done
    columns: list[tuple[Column, bool, Rows]] = [
        (SIZE, completion.folder.layout.px is None, lambda record: record.size),
        (XY, done.has_xy, _xy),
        (CELL_ID, done.has_ids, _cell_id),
        (READABLE, done.unreadable > 0, lambda record: record.readable),
        (PADDED, done.padded > 0, lambda record: record.padded),
    ]
    return [(column, rows) for column, needed, rows in columns if needed]


def _xy(record: ChunkRecord) -> Sequence[Sequence[float]]:
    return record.xy or [(math.nan, math.nan)] * len(record.readable)


def _cell_id(record: ChunkRecord) -> Sequence[str]:
    return record.cell_id or [""] * len(record.readable)


def _document(column: Column) -> str:
    return f"{column.name}/zarr.json"


def _publish(folder: ChunkFolder, target: PackTarget, record: PackRecord) -> None:
    # Before the archive is in its place: one that is there and not remembered would be taken
    # for somebody else's, and stop the next run.
    target.remember(record)
    replaced = folder.path / "replaced"
    remove(replaced)
    replaced.mkdir()
    if target.archive.exists() or target.archive.is_symlink():
        target.archive.rename(replaced / "archive")
    folder.archive.rename(target.archive)
    flush(target.archive.parent)
    remove(target.partial)
