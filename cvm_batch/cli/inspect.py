"""``cvm-batch inspect``: what slides are, before a night is spent on them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.cli.opening import each_slide, opened_for, reading_options, slides_at
from cvm_batch.errors import ExitCode, SlideError, UsageError
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from cvm_batch.archives.inspecting import Inspection
    from cvm_batch.archives.opening import OpenOptions
    from cvm_batch.archives.tables.slides import ListedSlide

#: Reading some hundred tiles takes seconds, unless a decoder hangs.
_TIMEOUT_SECONDS = 300.0


@click.command()
@click.argument("slides", nargs=-1, required=True)
@click.option(
    "--contact-sheet",
    "sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a picture of some of the slide's cells to this PNG file; for one slide.",
)
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(slides: tuple[str, ...], sheet: Path | None, as_json: bool, **options: Any) -> int:
    """Show what SLIDES hold: format, identity, number of tiles, sizes, scale, checksums.

    SLIDES are what `submit` takes. Some hundred tiles of each are read, in processes of
    their own, so that a slide that crashes its decoder is shown as such. Exit code 3 where
    a slide cannot be opened.
    """
    found = slides_at(slides)
    if sheet is not None and len(found) != 1:
        raise UsageError(f"--contact-sheet is for one slide; {len(found)} were found.")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UsageError(f"--contact-sheet {sheet}: name a .png file.")
    shown: list[dict[str, Any]] = []
    picture = None
    look = partial(_inspect, options=opened_for(options))
    for slide, result in each_slide(look, found, timeout=_TIMEOUT_SECONDS):
        if isinstance(result, SlideError):
            shown.append(_failed(slide, result))
        else:
            shown.append(_shown(slide, result))
            picture = result.sheet
        if not as_json:
            _print(shown[-1])
    if as_json:
        print_json(shown)
    if sheet is not None and picture is not None:
        _save(picture, sheet)
    failed = any("reason" in each for each in shown)
    return ExitCode.NOT_ALL_COMPLETE if failed else ExitCode.COMPLETE


def _save(picture: Image, sheet: Path) -> None:
    try:
        picture.save(sheet)
    except OSError as error:
        raise UsageError(
            f"--contact-sheet {sheet} cannot be written: {error.strerror or error}; choose "
            "another file."
        ) from error


def _inspect(slide: ListedSlide, options: OpenOptions) -> Inspection:
    from cvm_batch.archives.inspecting import inspect_slide

    return inspect_slide(slide.address, options)


def _shown(slide: ListedSlide, found: Inspection) -> dict[str, Any]:
    info = found.info
    return {
        "slide_id": slide.slide_id,
        "uri": slide.address.uri,
        "format": found.format,
        "identity": info.identity,
        "tiles": info.tiles,
        "expected_from": str(info.expected_from),
        "missing": info.missing,
        "tile_px": info.tile_px,
        "sizes_seen": [{"height": h, "width": w, "tiles": n} for h, w, n in found.sizes],
        "mpp": info.mpp,
        "integrity": str(info.integrity),
        "looked_at": found.looked_at,
        "unreadable": found.unreadable,
        "padded": found.padded,
        "faults": list(found.faults),
    }


def _failed(slide: ListedSlide, error: SlideError) -> dict[str, Any]:
    return {
        "slide_id": slide.slide_id,
        "uri": slide.address.uri,
        "reason": str(error.reason),
        "detail": str(error),
    }


def _print(shown: dict[str, Any]) -> None:
    STDOUT.print(printable(shown["slide_id"]), soft_wrap=True)
    for name, value in _lines(shown):
        STDOUT.print(f"  {name:<10} {printable(value)}", soft_wrap=True)


def _lines(shown: dict[str, Any]) -> list[tuple[str, str]]:
    if "reason" in shown:
        return [("failed", f"{shown['reason']}: {shown['detail']}")]
    sizes = [f"{each['width']} x {each['height']} px" for each in shown["sizes_seen"]]
    more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    mpp = shown["mpp"]
    lines = [
        ("format", shown["format"]),
        ("identity", shown["identity"]),
        ("tiles", f"{shown['tiles']:,} (from the {shown['expected_from'].replace('_', ' ')})"),
        ("size", f"{', '.join(sizes[:3]) or 'not known'}{more}"),
        ("scale", f"{mpp[0]:g} x {mpp[1]:g} um per pixel" if mpp else "not recorded"),
        ("checksums", _CHECKSUMS[shown["integrity"]]),
        ("looked at", f"{shown['looked_at']} tiles, {shown['unreadable']} of them unreadable"),
    ]
    if shown["missing"]:
        lines.append(("missing", f"{shown['missing']:,} tiles are not there"))
    if shown["padded"]:
        lines.append(("padded", f"{shown['padded']} of these reach beyond the slide's border"))
    lines += [("fault", fault) for fault in shown["faults"]]
    return lines


_CHECKSUMS = {
    "verified": "verified: what is read is compared with recorded ones",
    "unverified": "none: damage that still decodes would not be noticed",
}
