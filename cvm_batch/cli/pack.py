"""``cvm-batch pack``: slides of any format as the one that is read fastest and checked best."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from cvm_batch.cli.console import STDERR, STDOUT, print_json
from cvm_batch.cli.opening import opened_for, reading_options, slides_at
from cvm_batch.cli.progress import progress_on, speed_and_time_left
from cvm_batch.errors import ExitCode, UsageError
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.archives.packing.pack import NotPacked, Outcome, Packed, PackProgress

_TOLD = 20


@dataclass
class _Ending:
    """What was packed, and what was not."""

    packed: list[Packed] = field(default_factory=list)
    not_packed: list[NotPacked] = field(default_factory=list)
    left: int = 0
    """Slides that a stop has left for the next time."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> ExitCode:
        if self.left:
            return ExitCode.STOPPED
        whole = not self.not_packed and not self.with_unreadable
        return ExitCode.COMPLETE if whole else ExitCode.NOT_ALL_COMPLETE

    @property
    def with_unreadable(self) -> list[Packed]:
        return [each for each in self.packed if each.record.unreadable]

    def add(self, outcome: Outcome) -> None:
        from cvm_batch.archives.packing.pack import Packed

        if isinstance(outcome, Packed):
            self.packed.append(outcome)
        else:
            self.not_packed.append(outcome)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--out", required=True, help="The folder for packed slides; made if need be.")
@click.option("--jobs", type=click.IntRange(1), help="Worker processes; default: one per CPU.")
@click.option("--force", is_flag=True, help="Pack anew, and replace what is in the way.")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pack(
    sources: tuple[str, ...],
    out: str,
    jobs: int | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Pack slides into zarr archives of which every byte is checked when it is read.

    SRC are what `submit` takes. Each slide becomes the folder OUT/<slide_id>.zarr, with its
    crops at native size, a CRC-32C on every chunk and a manifest of SHA-256 digests. To crop
    whole slides, give the model's --tile-um. The same slide gives the same bytes, whatever
    --jobs is. What is packed already is left as it is, and what was interrupted is gone on
    with: after Ctrl-C, SIGTERM or a power cut, give the same command again.

    Exit code 3 where a slide could not be packed, or has tiles that could not be read: those
    are marked in its archive; 4 where it was stopped before the end.
    """
    from cvm_batch.archives.packing.targets import check_outside

    folder = _on_disk(out)
    check_outside(folder, sources)
    slides = slides_at(sources)
    ending = _Ending()
    started = time.monotonic()
    try:
        with _sigterm_interrupts(), progress_on(STDERR, _describe, "looking at slides") as report:
            _pack(slides, folder, ending, jobs, force, report, options)
    except KeyboardInterrupt:
        ending.left = len(slides) - len(ending.packed) - len(ending.not_packed)
    ending.seconds = time.monotonic() - started
    if as_json:
        print_json(_as_json(ending))
    else:
        _print(ending, folder)
    return ending.exit_code


def _pack(
    slides: Sequence[Any],
    out: Path,
    ending: _Ending,
    jobs: int | None,
    force: bool,
    report: Callable[[PackProgress], None],
    options: dict[str, Any],
) -> None:
    from cvm_batch.archives.packing.pack import pack_slides

    outcomes = pack_slides(slides, opened_for(options), out, jobs=jobs, force=force, report=report)
    with closing(outcomes):
        for outcome in outcomes:
            ending.add(outcome)


def _on_disk(out: str) -> Path:
    if "://" in out:
        raise UsageError(
            f"--out {out}: slides are packed into a folder on a disk. Copy them from there to "
            "object storage."
        )
    return Path(out)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: nothing is lost by ending at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(progress: PackProgress, speed: float | None) -> str:
    """One line: slides, tiles, speed, time left, what is wrong."""
    parts = [
        f"{progress.slides_done:,}/{progress.slides:,} slides",
        f"{progress.tiles_done:,}/{progress.tiles:,} tiles",
        *speed_and_time_left(progress, speed),
    ]
    if progress.not_packed:
        parts.append(f"{progress.not_packed} not packed")
    return ", ".join(parts)


def _as_json(ending: _Ending) -> dict[str, Any]:
    slides = [*map(_packed_as_json, ending.packed), *map(_not_packed_as_json, ending.not_packed)]
    return {
        "slides": sorted(slides, key=lambda slide: slide["slide_id"]),
        "left": ending.left,
        "seconds": round(ending.seconds, 3),
    }


def _packed_as_json(packed: Packed) -> dict[str, Any]:
    record = packed.record
    return {
        "slide_id": packed.slide.slide_id,
        "uri": packed.slide.address.uri,
        "status": "packed_already" if packed.already else "packed",
        "archive": str(packed.archive),
        "digest": record.digest,
        "tiles": record.tiles,
        "unreadable": record.unreadable,
        "faults": list(record.faults),
        "bytes": record.size,
    }


def _not_packed_as_json(failed: NotPacked) -> dict[str, Any]:
    return {
        "slide_id": failed.slide.slide_id,
        "uri": failed.slide.address.uri,
        "status": "failed",
        "reason": str(failed.error.reason),
        "detail": str(failed.error),
    }


def _print(ending: _Ending, out: Path) -> None:
    STDOUT.print(_summary(ending), soft_wrap=True)
    if ending.left:
        STDOUT.print(f"Stopped: {ending.left} slides are left; pack again to go on.")
    failed = [
        f"{each.slide.slide_id}: {each.error.reason}: {each.error}" for each in ending.not_packed
    ]
    _print_some("Not packed", failed)
    _print_some("With tiles that could not be read", list(map(_unreadable, ending.with_unreadable)))
    STDOUT.print(f"Packed slides: {out}", soft_wrap=True)


def _summary(ending: _Ending) -> str:
    new = [each.record for each in ending.packed if not each.already]
    already = len(ending.packed) - len(new)
    parts = [f"{len(new)} packed"]
    if already:
        parts.append(f"{already} packed already")
    if ending.not_packed:
        parts.append(f"{len(ending.not_packed)} failed")
    slides = len(ending.packed) + len(ending.not_packed) + ending.left
    tiles, size = sum(record.tiles for record in new), sum(record.size for record in new)
    return (
        f"{slides} slides: {', '.join(parts)}. {tiles:,} tiles, {size / 1e6:,.1f} MB, in "
        f"{ending.seconds:.1f} s."
    )


def _unreadable(packed: Packed) -> str:
    record = packed.record
    details = "; ".join(record.faults)
    return f"{packed.slide.slide_id}: {record.unreadable:,} of {record.tiles:,}: {details}"


def _print_some(title: str, lines: Sequence[str]) -> None:
    """Plain lines, for grep."""
    if not lines:
        return
    STDOUT.print(f"{title}:")
    for line in lines[:_TOLD]:
        STDOUT.print(f"  {printable(line)}", soft_wrap=True)
    if len(lines) > _TOLD:
        STDOUT.print(f"  and {len(lines) - _TOLD} more")
