"""From what the ledger holds of a slide to its row in the slides table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from math import sqrt

from cvm_batch.archives.archive import Integrity
from cvm_batch.archives.places.files import printable
from cvm_batch.archives.tables.slides import Preparation
from cvm_batch.errors import Reason
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.classes import CERVICAL_GROUPS
from cvm_batch.results.schemas import Adequacy, Status
from cvm_batch.results.slides import SlideRow
from cvm_batch.screening.ledger import SlideAccount
from cvm_batch.screening.plan import PlannedSlide
from cvm_batch.screening.work import (
    FAULTS_TOLD,
    TOP_CELLS,
    Failure,
    PartOutcome,
    QualitySums,
)

#: The Bethesda System 2014: squamous cells of which a slide must have this many to be judged.
_ENOUGH_CELLS = {Preparation.LIQUID_BASED: 5_000, Preparation.CONVENTIONAL: 8_000}


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What all rows of a run share."""

    run_id: str
    bundle: Bundle
    precision: str
    backend: str | None
    versions: Mapping[str, str]


def slide_row(
    context: RunContext, slide: PlannedSlide, account: SlideAccount | None, finished: float
) -> SlideRow:
    """The row of a slide that has ended; ``account`` is None where it never started.

    ``finished`` is in seconds since the epoch.
    """
    outcomes = sorted(account.counted, key=lambda o: o.part.start) if account else []
    failure = slide.failure or (account and account.failure) or _lacking(outcomes)
    status = failure.status if failure else Status.COMPLETE
    counts = _class_counts(context.bundle, outcomes)
    groups = _group_counts(context.bundle, counts)
    classified = sum(counts.values())
    complete = status is Status.COMPLETE
    primary = context.bundle.spec.primary_group
    abnormal = groups[primary] if primary and complete else None
    # A failed slide has no usable cell, whatever was read before the failure.
    failed = status is Status.FAILED
    expected = slide.info.tiles if slide.info else None
    started = account.first_leased if account else None
    tops = _tops(outcomes)
    quality = _quality(outcomes, 0 if failed else classified)
    return SlideRow(
        run_id=context.run_id,
        slide_id=slide.slide_id,
        uri=printable(slide.address.uri),
        slide_identity=slide.identity,
        result_key=slide.result_key,
        bundle=context.bundle.spec.name,
        bundle_digest=context.bundle.digest,
        priority=slide.priority,
        preparation=str(slide.preparation) if slide.preparation else None,
        listed=slide.further,
        status=status,
        reason=str(failure.reason) if failure else None,
        detail=printable(failure.detail) if failure else None,
        cells_expected=expected,
        expected_from=str(slide.info.expected_from) if slide.info else None,
        cells_classified=0 if failed else classified,
        cells_unreadable=expected if failed else sum(outcome.unreadable for outcome in outcomes),
        integrity=None if failed else _integrity(outcomes),
        class_counts=counts if complete else None,
        group_counts=groups if complete else None,
        primary_group=primary,
        abnormal_count=abnormal,
        abnormal_fraction=None if abnormal is None else abnormal / classified,
        counts_at_least=counts if status is Status.INCOMPLETE else None,
        group_counts_at_least=groups if status is Status.INCOMPLETE else None,
        slide_score=_score(tops) if complete else None,
        top_classes=None if failed else _top_classes(context.bundle, tops),
        adequacy=_adequacy(slide.preparation, status, classified),
        confidence_mean=quality.confidence,
        brightness_mean=quality.brightness,
        brightness_std=quality.brightness_std,
        focus_mean=quality.focus,
        cells_files=[] if failed else _files(outcomes, "cells_file"),
        tops_files=[] if failed else _files(outcomes, "tops_file"),
        attempts=account.attempts if account else 1,
        seconds=sum(outcome.seconds for outcome in outcomes),
        started_at=_utc(finished if started is None else started),
        finished_at=_utc(finished),
        precision=context.precision,
        backend=context.backend,
        versions=context.versions,
    )


def _lacking(outcomes: Sequence[PartOutcome]) -> Failure | None:
    """Why a slide whose parts are all counted is still not complete."""
    unreadable = sum(outcome.unreadable for outcome in outcomes)
    if not unreadable:
        return None
    missing = any(outcome.missing for outcome in outcomes)
    told = [detail for outcome in outcomes for detail in outcome.fault_details][:FAULTS_TOLD]
    more = f"; and {unreadable - len(told)} more" if unreadable > len(told) else ""
    tiles = sum(len(outcome.part) for outcome in outcomes)
    return Failure(
        Reason.MISSING_TILES if missing else Reason.UNREADABLE_TILES,
        f"{unreadable} of {tiles} tiles could not be read: {'; '.join(told)}{more}",
    )


def _adequacy(preparation: Preparation | None, status: Status, classified: int) -> Adequacy:
    """By cells of whatever class: the archive has those that are worth a crop."""
    if preparation is None or status is Status.FAILED:
        return Adequacy.NOT_ASSESSED
    if classified >= _ENOUGH_CELLS[preparation]:
        return Adequacy.ADEQUATE
    # An incomplete one may have had enough.
    return Adequacy.SCANT if status is Status.COMPLETE else Adequacy.NOT_ASSESSED


def _class_counts(bundle: Bundle, outcomes: Sequence[PartOutcome]) -> dict[str, int]:
    names = bundle.spec.class_names
    return {
        name: sum(outcome.class_counts[place] for outcome in outcomes)
        for place, name in enumerate(names)
    }


def _group_counts(bundle: Bundle, counts: Mapping[str, int]) -> dict[str, int | None]:
    """Cells per group; null for a cervical group that the bundle does not define."""
    undefined: dict[str, int | None] = dict.fromkeys(CERVICAL_GROUPS)
    return undefined | {
        group: sum(counts[name] for name in members)
        for group, members in bundle.spec.groups.items()
    }


def _tops(outcomes: Sequence[PartOutcome]) -> list[tuple[float, int]]:
    """Primary-group probability and class of the slide's most suspicious cells."""
    found = (zip(o.top_scores, o.top_classes, strict=True) for o in outcomes)
    return sorted(chain.from_iterable(found), key=lambda top: -top[0])[:TOP_CELLS]


def _score(tops: Sequence[tuple[float, int]]) -> float | None:
    """Mean primary-group probability of the slide's most suspicious cells."""
    scores = [score for score, _ in tops]
    return sum(scores) / len(scores) if scores else None


def _top_classes(bundle: Bundle, tops: Sequence[tuple[float, int]]) -> dict[str, int] | None:
    names = bundle.spec.class_names
    return dict(Counter(names[class_] for _, class_ in tops)) or None


@dataclass(frozen=True)
class _Quality:
    """Means over classified cells; None where there are none."""

    confidence: float | None = None
    brightness: float | None = None
    brightness_std: float | None = None
    focus: float | None = None


def _quality(outcomes: Sequence[PartOutcome], classified: int) -> _Quality:
    if not classified:
        return _Quality()
    sums = sum((outcome.quality for outcome in outcomes), QualitySums())
    brightness = sums.brightness / classified
    variance = sums.brightness_squared / classified - brightness**2
    return _Quality(
        confidence=sums.confidence / classified,
        brightness=brightness,
        brightness_std=sqrt(max(0.0, variance)),
        focus=sums.focus / classified,
    )


def _integrity(outcomes: Sequence[PartOutcome]) -> str | None:
    """The least that was seen in any part."""
    seen = {outcome.integrity for outcome in outcomes if outcome.integrity}
    if not seen:
        return None
    return str(Integrity.UNVERIFIED if Integrity.UNVERIFIED in seen else Integrity.VERIFIED)


def _files(outcomes: Sequence[PartOutcome], which: str) -> list[str]:
    return [path for outcome in outcomes if (path := getattr(outcome, which))]


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
