"""The plan: which slides there are, what is done already, and what is to be classified.

Planning reads listings and metadata, never pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cvm_batch.archives.archive import SlideInfo
from cvm_batch.archives.discovery import SlidePath, discover
from cvm_batch.archives.formats import identity_of, open_archive
from cvm_batch.errors import NoSlidesError, SlideError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import PREPROCESSING_VERSION
from cvm_batch.results.schemas import SCHEMA_VERSION
from cvm_batch.results.slides import History, Settled
from cvm_batch.screening.work import Failure


@dataclass(frozen=True, kw_only=True)
class PlannedSlide:
    """A slide to classify, or one that failed before a pixel was read."""

    slide_id: str
    uri: str
    info: SlideInfo | None
    failure: Failure | None = None
    result_key: str | None = None


class SettledSlide(NamedTuple):
    """A slide that an earlier run has dealt with."""

    slide_id: str
    found: Settled


@dataclass(frozen=True, kw_only=True)
class Plan:
    slides: tuple[PlannedSlide, ...]
    """To classify, in the order in which they go out: largest first."""
    failed: tuple[PlannedSlide, ...]
    """Those that cannot even be opened."""
    settled: tuple[SettledSlide, ...]
    ignored: tuple[tuple[Path, str], ...]
    """Files and folders that hold no slide, and why."""

    @property
    def slide_count(self) -> int:
        """Slides that this run is to end, one way or another."""
        return len(self.slides) + len(self.failed)

    @property
    def tiles(self) -> int:
        return sum(slide.info.tiles for slide in self.slides if slide.info is not None)


def make_plan(
    inputs: Sequence[Path], bundle: Bundle, precision: Precision, history: History
) -> Plan:
    """Raises NoSlidesError, SlideIdCollisionError."""
    found = discover(inputs)
    if not found.slides:
        raise NoSlidesError(
            f"No slides found in {', '.join(map(str, inputs))}. A slide is a folder or a .zip of "
            "cell images, or a zarr archive with an array called tiles."
        )
    slides, failed, settled = [], [], []
    for path in found.slides:
        planned = _describe(path, bundle, precision)
        key = planned.result_key
        stands = history.settled(planned.slide_id, key) if key else None
        if stands is not None:
            settled.append(SettledSlide(planned.slide_id, stands))
        elif planned.failure is not None:
            failed.append(planned)
        else:
            slides.append(planned)
    slides.sort(key=lambda slide: -slide.info.tiles if slide.info else 0)
    return Plan(
        slides=tuple(slides),
        failed=tuple(failed),
        settled=tuple(settled),
        ignored=found.ignored,
    )


def result_key(slide_identity: str, bundle: Bundle, precision: Precision) -> str:
    """Digest of all that decides a slide's result; the backend is recorded, not keyed."""
    decisive = {
        "slide_identity": slide_identity,
        "bundle": bundle.digest,
        "preprocessing": PREPROCESSING_VERSION,
        "precision": str(precision),
        "results": SCHEMA_VERSION,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _describe(path: SlidePath, bundle: Bundle, precision: Precision) -> PlannedSlide:
    slide_id, uri = path.slide_id, str(path.path)
    try:
        archive = open_archive(path.path)
        try:
            info = archive.describe()
        finally:
            archive.close()
    except SlideError as error:
        key = _key_of_unopened(path.path, bundle, precision)
        failure = Failure.of(error)
        return PlannedSlide(slide_id=slide_id, uri=uri, info=None, failure=failure, result_key=key)
    key = result_key(info.identity, bundle, precision)
    return PlannedSlide(slide_id=slide_id, uri=uri, info=info, result_key=key)


def _key_of_unopened(path: Path, bundle: Bundle, precision: Precision) -> str | None:
    """So that a broken archive is tried again when somebody has touched it, not before."""
    try:
        return result_key(identity_of(path), bundle, precision)
    except SlideError:
        return None
