"""``cvm-batch export``: an fp32 bundle as one of half the size, if it says the same."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.table import Table

from cvm_batch.cli.console import STDERR, STDOUT, print_json
from cvm_batch.cli.opening import opened_for_model, opening_options, slides_at
from cvm_batch.cli.progress import progress_on, speed_and_time_left
from cvm_batch.errors import ExitCode, SlideError, UsageError
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.archives.address import SlideAddress
    from cvm_batch.archives.archive import SlideArchive, SlideInfo
    from cvm_batch.archives.opening import OpenOptions
    from cvm_batch.archives.tables.slides import ListedSlide
    from cvm_batch.model.agreement import Agreement
    from cvm_batch.model.bundle import Bundle
    from cvm_batch.model.export import Export
    from cvm_batch.tiles import Tiles

#: Processes that read tiles: no network keeps up with more.
_READERS = 2
#: Where digests are recorded, reading a slide's first tiles starts with reading it whole.
_TIMEOUT_SECONDS = 2 * 3600.0
_SHOWN = 20


@click.command()
@click.argument("bundle")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "paths",
    multiple=True,
    metavar="PATH",
    help="Slides to compare fp16 with fp32 on, besides the sentinels; may be given repeatedly.",
)
@opening_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    bundle: str, out: Path, paths: tuple[str, ...], as_json: bool, **options: Any
) -> ExitCode:
    """Write BUNDLE, an fp32 bundle's folder or known name, as an fp16 bundle to the new folder OUT.

    Both classify the sentinels of BUNDLE, and every readable tile of the slides in --data,
    which are what `submit` takes. Nothing is written, and the exit code is 2, where less than
    99 % of the sentinels or of the data keep their class, where a probability of a sentinel
    differs by more than 0.02, or where a weight or any number within the network is beyond
    what fp16 holds. Exit code 3 where a slide could not be read to its end: what was read of
    it counts.
    """
    import torch

    from cvm_batch.cpus import usable_cpus
    from cvm_batch.model.export import Export
    from cvm_batch.model.registry import find_bundle

    # torch counts the machine's processors, not those that a container may use.
    torch.set_num_threads(usable_cpus())
    source = find_bundle(bundle)
    slides = slides_at(paths) if paths else ()
    measured = Export(source, out)
    data = _Data(slides, opened_for_model(source.spec, options))
    if slides:
        _compare(measured, data)
    written = measured.write(read=data.to_json())
    if as_json:
        print_json(_as_json(measured, written, data))
    else:
        _print(measured, written, data)
    return ExitCode.NOT_ALL_COMPLETE if data.failed else ExitCode.COMPLETE


def _compare(measured: Export, data: _Data) -> None:
    with progress_on(STDERR, _describe, "looking at slides") as report:
        data.look()
        with closing(data.read()) as blocks:
            for tiles in blocks:
                measured.add(tiles)
                report(data)
    if measured.data is None:
        why = "".join(f" {slide_id}: {error}" for slide_id, error in [*data.failed.items()][:1])
        raise UsageError(f"--data: none of {data.tiles:,} tiles could be read.{why}")


# Reading


@dataclass(frozen=True)
class _Block:
    """The tiles [start, stop) of one slide."""

    slide: ListedSlide
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class _Data:
    """The slides in --data, and what was read of them so far."""

    def __init__(self, slides: Sequence[ListedSlide], options: OpenOptions) -> None:
        self.slides = slides
        self.tiles = 0
        """Of all that could be opened."""
        self.tiles_done = 0
        self.unreadable = 0
        self.failed: dict[str, SlideError] = {}
        """By slide_id, those that were not read to their end."""
        self._options = options
        self._opened: list[tuple[ListedSlide, SlideInfo]] = []

    def look(self) -> None:
        """Find out what slides there are, without reading pixels. Raises UsageError."""
        from cvm_batch.archives.describing import describe_all

        addresses = (slide.address for slide in self.slides)
        descriptions = describe_all(addresses, self._options)
        for slide, found in zip(self.slides, descriptions, strict=True):
            if found.error is not None:
                self.failed[slide.slide_id] = found.error
            elif found.info is not None:
                self._opened.append((slide, found.info))
                self.tiles += found.info.tiles

    def read(self) -> Generator[Tiles, None, None]:
        """The readable tiles, a few at a time, read in processes that may die of them."""
        from cvm_batch.archives.places.files import as_slide_error
        from cvm_batch.cpus import usable_cpus
        from cvm_batch.isolation import Failed, run_isolated

        outcomes = run_isolated(
            partial(_read, options=self._options),
            self._blocks(),
            jobs=min(_READERS, usable_cpus()),
            timeout=_TIMEOUT_SECONDS,
            name=lambda block: block.slide.address.uri,
        )
        with closing(outcomes):
            for outcome in outcomes:
                block = outcome.item
                self.tiles_done += len(block)
                if isinstance(outcome, Failed):
                    error = as_slide_error(outcome.error, block.slide.address.uri)
                    self.failed.setdefault(block.slide.slide_id, error)
                    continue
                self.unreadable += len(block) - len(outcome.result)
                if len(outcome.result):
                    yield outcome.result

    def to_json(self) -> dict[str, int]:
        return {
            "slides": len(self.slides),
            "slides_failed": len(self.failed),
            "unreadable": self.unreadable,
        }

    def _blocks(self) -> Iterator[_Block]:
        from cvm_batch.archives.packing.rows import reading_step

        for slide, info in self._opened:
            step = reading_step(info)
            for start in range(0, info.tiles, step):
                if slide.slide_id in self.failed:
                    break
                yield _Block(slide, start, min(start + step, info.tiles))


#: In a worker: the slide that it has open, as blocks of one slide follow each other.
_held: dict[SlideAddress, SlideArchive] = {}


def _read(block: _Block, options: OpenOptions) -> Tiles:
    """In a worker: the readable tiles of a block."""
    from cvm_batch.archives.formats import open_archive

    address = block.slide.address
    if address not in _held:
        while _held:
            _held.popitem()[1].close()
        _held[address] = open_archive(address, options)
    found = _held[address].read(block.start, block.stop)
    if isinstance(found.tiles, np.ndarray):
        return found.tiles[found.readable]
    return [tile for tile, good in zip(found.tiles, found.readable, strict=True) if good]


# Telling


def _describe(data: _Data, speed: float | None) -> str:
    parts = [f"{data.tiles_done:,}/{data.tiles:,} tiles", *speed_and_time_left(data, speed)]
    if data.failed:
        parts.append(f"{len(data.failed)} slides failed")
    return ", ".join(parts)


def _as_json(measured: Export, written: Bundle, data: _Data) -> dict[str, Any]:
    source, names = measured.bundle, written.spec.class_names
    return {
        "path": written.path,
        "digest": written.digest,
        "exported_from": {"path": source.path, "digest": source.digest},
        "weights_bytes": {"fp32": source.weights_bytes, "fp16": written.weights_bytes},
        "device": measured.device_name,
        "sentinels": measured.sentinels.to_json(names),
        "data": measured.data.to_json(names) | data.to_json() if measured.data else None,
        "failed": [
            {"slide_id": slide_id, "reason": str(error.reason), "detail": str(error)}
            for slide_id, error in data.failed.items()
        ],
        "largest_activation": measured.activation_json(),
    }


def _print(measured: Export, written: Bundle, data: _Data) -> None:
    from cvm_batch.model.export import told

    before, after = (each.weights_bytes / 2**20 for each in (measured.bundle, written))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("weights", f"{before:.1f} MiB in fp32, {after:.1f} MiB in fp16")
    table.add_row("compared on", measured.device_name)
    table.add_row("sentinels", told(measured.sentinels))
    if measured.data is not None:
        table.add_row("data", told(measured.data))
        for change in _changes(measured.data, written.spec.class_names):
            table.add_row("", change)
        if data.unreadable:
            table.add_row("", f"{data.unreadable:,} tiles could not be read")
    table.add_row("largest number", measured.activation_told())
    table.add_row("folder", str(written.path))
    table.add_row("digest", written.digest)
    STDOUT.print(table)
    if data.failed:
        STDOUT.print("Not read to their end:")
    for slide_id, error in [*data.failed.items()][:_SHOWN]:
        STDOUT.print(printable(f"  {slide_id}: {error.reason}: {error}"), soft_wrap=True)
    if len(data.failed) > _SHOWN:
        STDOUT.print(f"  and {len(data.failed) - _SHOWN} more")


def _changes(found: Agreement, names: tuple[str, ...]) -> list[str]:
    return [f"{tiles:,} from {names[a]} to {names[b]}" for a, b, tiles in found.changes()]
