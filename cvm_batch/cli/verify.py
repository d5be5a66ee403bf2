"""``cvm-batch verify``: reads slides, bundles and results again, to their last byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.cli.opening import each_slide, opened_for, reading_options, slides_at
from cvm_batch.errors import BundleError, ExitCode, SlideError
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.archives.opening import OpenOptions
    from cvm_batch.archives.tables.slides import ListedSlide
    from cvm_batch.archives.verifying import SlideVerdict

#: A slide of a million cells on a slow share takes hours.
_TIMEOUT_SECONDS = 12 * 3600.0
#: One of them makes a folder a bundle, damaged as it may be. `model.bundle` loads PyTorch.
_BUNDLE_FILES = ("bundle.json", "model.safetensors")


class _Checked(NamedTuple):
    what: str
    """``slide``, ``bundle`` or ``results``."""
    name: str
    good: bool
    detail: str


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--jobs", type=click.IntRange(1), help="Slides at once; default: one per CPU.")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(paths: tuple[str, ...], jobs: int | None, as_json: bool, **options: Any) -> int:
    """Read slides, bundles and results folders at PATHS again and compare every checksum.

    Exit code 3 where anything differs, is missing or does not decode; 2 where there is none.
    """
    checked: list[_Checked] = []
    slides: list[str] = []
    for path in paths:
        if any((Path(path) / name).is_file() for name in _BUNDLE_FILES):
            checked.append(_bundle(Path(path)))
        elif _holds_results(path):
            checked += _results(path)
        else:
            slides.append(path)
    if not as_json:
        for each in checked:
            _print(each)
    if slides:
        found = slides_at(slides, needed=not checked)
        for each in _slides(found, jobs, opened_for(options)):
            checked.append(each)
            if not as_json:
                _print(each)
    wrong = sum(not each.good for each in checked)
    if as_json:
        print_json([each._asdict() for each in checked])
    else:
        STDOUT.print(f"{len(checked)} checked, {wrong} of them wrong.")
    return ExitCode.NOT_ALL_COMPLETE if wrong else ExitCode.COMPLETE


def _print(checked: _Checked) -> None:
    verdict = "ok   " if checked.good else "WRONG"
    text = f"{verdict} {checked.what} {checked.name}: {checked.detail}"
    STDOUT.print(printable(text), soft_wrap=True)


def _bundle(path: Path) -> _Checked:
    from cvm_batch.model.bundle import load_bundle

    try:
        bundle = load_bundle(path)
    except BundleError as error:
        return _Checked("bundle", str(path), False, str(error))
    return _Checked("bundle", str(path), True, f"every digest agrees, {bundle.digest}")


def _holds_results(path: str) -> bool:
    from cvm_batch.remote.addresses import WEB, is_remote, scheme_of
    from cvm_batch.results.verifying import holds_results

    return not (is_remote(path) and scheme_of(path) in WEB) and holds_results(path)


def _results(path: str) -> Iterator[_Checked]:
    from cvm_batch.results.verifying import verify_results

    found = verify_results(path)
    for finding in found.findings:
        yield _Checked("results", f"{path}/{finding.path}", False, finding.what)
    if not found.findings:
        told = f"{found.runs} runs, {found.slides:,} slides and {found.cells:,} cells add up"
        if head := found.audit_head:
            told += f"; the audit log is whole up to entry {head.number}, {head.digest}"
        yield _Checked("results", path, True, told)


def _slides(
    slides: Sequence[ListedSlide], jobs: int | None, options: OpenOptions
) -> Iterator[_Checked]:
    look = partial(_verify, options=options)
    for slide, found in each_slide(look, slides, timeout=_TIMEOUT_SECONDS, jobs=jobs):
        if isinstance(found, SlideError):
            yield _Checked("slide", slide.slide_id, False, f"{found.reason}: {found}")
        else:
            yield _verdict(slide.slide_id, found)


def _verify(slide: ListedSlide, options: OpenOptions) -> SlideVerdict:
    from cvm_batch.archives.verifying import verify_slide

    return verify_slide(slide.address, options)


def _verdict(slide_id: str, verdict: SlideVerdict) -> _Checked:
    if verdict.unreadable:
        detail = f"{verdict.unreadable} of {verdict.tiles} tiles could not be read: "
        return _Checked("slide", slide_id, False, detail + "; ".join(verdict.details))
    told = {
        "verified": "every checksum agrees",
        "unverified": "every tile decodes, but no checksum is recorded",
    }[verdict.integrity]
    return _Checked("slide", slide_id, True, f"{verdict.tiles:,} tiles, {told}")
