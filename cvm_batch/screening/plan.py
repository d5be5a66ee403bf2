"""The plan: which slides there are, what is done already, and what is to be classified.

Planning reads listings and metadata, never pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideInfo
from cvm_batch.archives.describing import Description, describe_all
from cvm_batch.archives.discovery import Ignored, discover
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.tables.slides import ListedSlide, Preparation
from cvm_batch.errors import NoSlidesError
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
    address: SlideAddress
    info: SlideInfo | None
    failure: Failure | None = None
    result_key: str | None = None
    priority: int = 0
    """Higher goes first."""
    preparation: Preparation | None = None
    further: Mapping[str, str] = field(default_factory=dict)
    """Columns of the manifest that only pass through."""


class SettledSlide(NamedTuple):
    """A slide that an earlier run has dealt with."""

    slide_id: str
    found: Settled


@dataclass(frozen=True, kw_only=True)
class Plan:
    slides: tuple[PlannedSlide, ...]
    """To classify, in the order in which they go out: by priority, then largest first."""
    failed: tuple[PlannedSlide, ...]
    """Those that cannot even be opened."""
    settled: tuple[SettledSlide, ...]
    ignored: tuple[Ignored, ...] = ()
    """Files and folders that hold no slide, and why."""

    @property
    def slide_count(self) -> int:
        """Slides that this run is to end, one way or another."""
        return len(self.slides) + len(self.failed)

    @property
    def tiles(self) -> int:
        return sum(slide.info.tiles for slide in self.slides if slide.info is not None)

    def joined(self, further: Plan) -> Plan:
        """This plan and, behind it, one for further slides."""
        return Plan(
            slides=self.slides + further.slides,
            failed=self.failed + further.failed,
            settled=self.settled + further.settled,
            ignored=self.ignored + further.ignored,
        )


def make_plan(inputs: Sequence[str], planner: Callable[[Sequence[ListedSlide]], Plan]) -> Plan:
    """Find the slides among ``inputs``, and plan them by `plan_slides`.

    Raises UsageError: NoSlidesError, SlideIdCollisionError or that of a manifest.
    """
    found = discover(inputs)
    if not found.slides:
        raise NoSlidesError(
            f"No slides found in {', '.join(inputs)}. A slide is a folder, .zip or .tar of cell "
            "images, a zarr archive with an array called tiles, or a whole-slide image with a "
            "cells table beside it."
        )
    return replace(planner(found.slides), ignored=found.ignored)


def plan_slides(
    listed_slides: Sequence[ListedSlide],
    *,
    bundle: Bundle,
    precision: Precision,
    history: History,
    options: OpenOptions,
    retry: bool = False,
) -> Plan:
    """Tell what is to be classified from what is done, and what cannot even be opened.

    ``retry``: take up what is not complete, for whatever reason, and nothing else. Raises
    UsageError.
    """
    slides, failed, settled = [], [], []
    descriptions = describe_all((slide.address for slide in listed_slides), options)
    for listed, description in zip(listed_slides, descriptions, strict=True):
        planned = _planned(listed, description, bundle, precision, options)
        key = planned.result_key
        stands = history.settled(planned.slide_id, key) if key else None
        if retry:
            if not history.failed(planned.slide_id):
                continue
            stands = None
        if stands is not None:
            settled.append(SettledSlide(planned.slide_id, stands))
        elif planned.failure is not None:
            failed.append(planned)
        else:
            slides.append(planned)
    slides.sort(key=lambda slide: (-slide.priority, -slide.info.tiles if slide.info else 0))
    return Plan(
        slides=tuple(slides),
        failed=tuple(failed),
        settled=tuple(settled),
    )


def result_key(
    slide_identity: str,
    address: SlideAddress,
    bundle: Bundle,
    precision: Precision,
    options: OpenOptions,
) -> str:
    """Digest of all that decides a slide's result; the backend is recorded, not keyed."""
    decisive = {
        "slide_identity": slide_identity,
        # A manifest that is corrected may turn a failure into a result, or the reverse.
        "sha256": address.sha256,
        "cells_expected": address.cells_expected,
        "opening": options.decisive(),
        "bundle": bundle.digest,
        "preprocessing": PREPROCESSING_VERSION,
        "precision": str(precision),
        "results": SCHEMA_VERSION,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _planned(
    listed: ListedSlide,
    description: Description,
    bundle: Bundle,
    precision: Precision,
    options: OpenOptions,
) -> PlannedSlide:
    key = description.identity and result_key(
        description.identity, listed.address, bundle, precision, options
    )
    return PlannedSlide(
        slide_id=listed.slide_id,
        address=listed.address,
        info=description.info,
        failure=Failure.of(description.error) if description.error else None,
        result_key=key,
        priority=listed.priority,
        preparation=listed.preparation,
        further=listed.further,
    )
