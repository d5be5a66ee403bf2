"""What packing does in processes of its own, where a decoder may crash: it reads slides."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideArchive, SlideInfo
from cvm_batch.archives.formats import open_archive
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.packing.arrays import MisfitError, TileLayout
from cvm_batch.archives.packing.chunks import ChunkFolder, ChunkRecord
from cvm_batch.archives.packing.files import remove, write_whole, writing
from cvm_batch.archives.packing.rows import FAULTS_TOLD, read_chunk, reading_step
from cvm_batch.archives.packing.targets import PackRecord, PackTarget, source_key
from cvm_batch.errors import BadFormatError, InputChangedError

_SOURCE = "source.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """One slide to pack."""

    slide_id: str
    address: SlideAddress
    options: OpenOptions
    target: PackTarget
    force: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done for an order."""

    order: Order
    info: SlideInfo
    source: str
    """Of `source_key`."""
    layout: TileLayout
    """The first to try."""


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Some chunks of one slide, [first, last)."""

    order: Order
    identity: str
    """Of the slide, as it was planned."""
    folder: ChunkFolder
    first: int
    last: int

    @property
    def tiles(self) -> int:
        layout = self.folder.layout
        return layout.span(self.last - 1)[1] - layout.span(self.first)[0]


@dataclass(frozen=True, kw_only=True)
class PortionDone:
    """What stands in the records of a portion, in short."""

    fits: bool = True
    """Whether the layout could take all tiles; else nothing more is said."""
    unreadable: int = 0
    padded: int = 0
    has_xy: bool = False
    has_ids: bool = False
    faults: tuple[str, ...] = ()
    """The first few."""

    @classmethod
    def together(cls, parts: Iterable[PortionDone]) -> PortionDone:
        """Of several parts of a slide, in their order."""
        each = list(parts)
        faults = [fault for part in each for fault in part.faults]
        return cls(
            fits=all(part.fits for part in each),
            unreadable=sum(part.unreadable for part in each),
            padded=sum(part.padded for part in each),
            has_xy=any(part.has_xy for part in each),
            has_ids=any(part.has_ids for part in each),
            faults=tuple(faults[:FAULTS_TOLD]),
        )


def plan(order: Order) -> Plan | PackRecord:
    """Look at a slide, and for what earlier runs left of it.

    Returns the record of an archive that is whole. Raises SlideError or CommitError.
    """
    target = order.target
    with closing(open_archive(order.address, order.options)) as archive:
        info = archive.info
        source = source_key(info.identity, order.address, order.options)
        if not order.force and (record := target.finished(source)) is not None:
            with writing(target.partial):
                remove(target.partial)
            return record
        layout = _begun(target, source)
        if layout is None:
            layout = _first_layout(archive, info, order.address)
            begin(target, source, layout)
    with writing(target.partial):
        # A run that was killed as it began, or just before its end, has left not all of it.
        folder_of(target, layout).prepare()
    return Plan(order=order, info=info, source=source, layout=layout)


def pack(portion: Portion) -> PortionDone:
    """Read and write some chunks, save those that are there. Raises SlideError or CommitError."""
    try:
        records = [_pack_chunk(portion, chunk) for chunk in range(portion.first, portion.last)]
    except MisfitError:
        return PortionDone(fits=False)
    return PortionDone.together(map(_in_short, records))


def begin(target: PackTarget, source: str, layout: TileLayout) -> None:
    """Let a run that is killed be followed by one that goes on. Raises CommitError."""
    with writing(target.partial):
        remove(target.partial)
        target.prepare()
        data = json.dumps({"source": source, "layout": asdict(layout)}).encode()
        write_whole(target.partial / _SOURCE, data, target.partial / "beside")
        folder_of(target, layout).prepare()


def folder_of(target: PackTarget, layout: TileLayout) -> ChunkFolder:
    return ChunkFolder(target.partial, layout)


def _begun(target: PackTarget, source: str) -> TileLayout | None:
    """The layout in which an earlier run has begun to pack just this, or None."""
    try:
        value = json.loads((target.partial / _SOURCE).read_bytes())
        if value["source"] != source:
            return None
        layout = value["layout"]
        px = layout["px"]
        return TileLayout(**layout | {"px": px and (px[0], px[1])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _first_layout(archive: SlideArchive, info: SlideInfo, address: SlideAddress) -> TileLayout:
    if info.tile_px is not None:
        return TileLayout.equal(info.tiles, info.tile_px)
    step = reading_step(info)
    for start in range(0, info.tiles, step):
        block = archive.read(start, min(start + step, info.tiles))
        shown = [block.tiles[at].shape[:2] for at in np.flatnonzero(block.readable).tolist()]
        if len(set(shown)) > 1:
            return TileLayout.varying(info.tiles)
        if shown:
            height, width = shown[0]
            return TileLayout.equal(info.tiles, (height, width))
    raise BadFormatError(
        f"None of the {info.tiles} tiles of {address.uri} can be read. Export the slide anew."
    )


def _pack_chunk(portion: Portion, chunk: int) -> ChunkRecord:
    folder = portion.folder
    with writing(folder.path):
        record = folder.finished(chunk)
    if record is None:
        archive, step = _held.source_of(portion)
        data, record = read_chunk(archive, step, folder.layout, *folder.layout.span(chunk))
        with writing(folder.path):
            folder.put(chunk, data, record)
    return record


def _in_short(record: ChunkRecord) -> PortionDone:
    return PortionDone(
        unreadable=record.readable.count(False),
        padded=record.padded.count(True),
        has_xy=record.xy is not None,
        has_ids=record.cell_id is not None,
        faults=tuple(record.faults),
    )


class _Held:
    """The slide that this process has open, as portions of one slide follow each other.

    Opening lists all files, and where digests are recorded, reading starts with them.
    """

    def __init__(self) -> None:
        self._of: tuple[SlideAddress, OpenOptions, str] | None = None
        self._archive: SlideArchive | None = None
        self._step = 0

    def source_of(self, portion: Portion) -> tuple[SlideArchive, int]:
        """The portion's slide, and how many tiles to read at once. Raises SlideError."""
        wanted = (portion.order.address, portion.order.options, portion.identity)
        if self._archive is None or self._of != wanted:
            self._close()
            self._open(*wanted)
            self._of = wanted
        assert self._archive is not None
        return self._archive, self._step

    def _open(self, address: SlideAddress, options: OpenOptions, identity: str) -> None:
        self._archive = open_archive(address, options)
        info = self._archive.info
        check_unchanged(info.identity, identity, address)
        self._step = reading_step(info)

    def _close(self) -> None:
        self._of = None
        if self._archive is not None:
            self._archive.close()


def check_unchanged(identity: str, planned: str, address: SlideAddress) -> None:
    """Raise InputChangedError unless a slide still has the identity it was planned with."""
    if identity != planned:
        raise InputChangedError(
            f"{address.uri} changed while it was packed. Pack it again once nothing writes to it."
        )


_held = _Held()
