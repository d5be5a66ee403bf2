"""Figures of a run for those who watch many: their names, and what of a run feeds them.

No slide is named in a tag: figures go to servers that keep them long, and each new tag value is
a series of its own. Prometheus sees the names with `ray_` before them, counters with `_total`
behind (docs/operations.md has the list, cluster/prometheus/ what is made of them).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cvm_batch.results.schemas import Status
from cvm_batch.screening.executor import (
    Event,
    Executor,
    Hardware,
    LeaseDone,
    ReplicaLost,
    ReplicaProgress,
    ReplicaReady,
)
from cvm_batch.screening.summary import Progress
from cvm_batch.screening.work import Lease, PartOutcome, ReplicaSpec

#: Upper bounds of the histogram, seconds: a lease is a few seconds of work.
LEASE_BOUNDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 120.0)
#: Over which a replica's speed is taken, at least.
_SPEED_SECONDS = 2.0


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class _Described:
    title: str
    """As Ray is told; see `exported_name`."""
    kind: Kind
    description: str
    tags: tuple[str, ...] = ()


class Metric(_Described, Enum):
    """All there are."""

    TILES = "cvm_batch_tiles", Kind.COUNTER, "Tiles classified.", ("replica",)
    SLIDES = "cvm_batch_slides", Kind.COUNTER, "Slides that ended, by status.", ("status",)
    SPEED = "cvm_batch_tiles_per_second", Kind.GAUGE, "A replica's speed.", ("replica",)
    DECODE = (
        *("cvm_batch_decode_seconds", Kind.COUNTER),
        *("Seconds of decoding threads, added up.", ("replica",)),
    )
    DEVICE = (
        *("cvm_batch_device_seconds", Kind.COUNTER),
        *("Seconds of the device's lanes, added up.", ("replica",)),
    )
    FEED = (
        *("cvm_batch_feed_efficiency", Kind.GAUGE),
        *("Share of its time that a replica's device has worked, 0 to 1.", ("replica",)),
    )
    QUEUE_TILES = "cvm_batch_queue_tiles", Kind.GAUGE, "Tiles not yet classified."
    QUEUE_SLIDES = "cvm_batch_queue_slides", Kind.GAUGE, "Slides not yet ended."
    REPLICAS = "cvm_batch_replicas", Kind.GAUGE, "Replicas that serve."
    RETRIES = "cvm_batch_retries", Kind.COUNTER, "Parts handed out once more."
    RESTARTS = "cvm_batch_restarts", Kind.COUNTER, "Replicas lost and replaced.", ("how",)
    LEASES = "cvm_batch_lease_seconds", Kind.HISTOGRAM, "From handing a lease out to its answer."

    @property
    def exported_name(self) -> str:
        """As Prometheus sees it; a histogram's has ``_bucket``, ``_sum`` or ``_count`` behind."""
        return f"ray_{self.title}" + ("_total" if self.kind is Kind.COUNTER else "")


class Meter(Protocol):
    """Where figures go."""

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        """Add to a counter, set a gauge, observe for a histogram."""
        ...


class NoMeter:
    """Nowhere."""

    def record(self, metric: Metric, value: float, **tags: str) -> None: ...


@dataclass
class _Serving:
    """A replica, as far as its figures need it."""

    lanes: int
    since: float
    device_seconds: float = 0.0
    tiles: int = 0
    tiles_at: float = 0.0


class Metered:
    """An `Executor` whose events are counted on their way to the driver."""

    def __init__(
        self, executor: Executor, meter: Meter, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = executor.name
        self._executor = executor
        self._meter = meter
        self._now = now
        self._serving: dict[int, _Serving] = {}
        self._handed_out: dict[int, float] = {}
        self._ended: Counter[Status] = Counter()

    def told(self, progress: Progress, ended: Counter[Status]) -> None:
        """Where the run stands, and how many slides have ended with each status."""
        self._meter.record(Metric.QUEUE_TILES, max(0, progress.tiles - progress.tiles_done))
        self._meter.record(Metric.QUEUE_SLIDES, progress.slides - progress.slides_done)
        self._meter.record(Metric.REPLICAS, progress.replicas)
        for status, count in (ended - self._ended).items():
            self._meter.record(Metric.SLIDES, count, status=str(status))
        self._ended = Counter(ended)

    def hardware(self) -> Hardware:
        return self._executor.hardware()

    def prepare(self) -> None:
        self._executor.prepare()

    def start(self, spec: ReplicaSpec) -> None:
        self._executor.start(spec)

    def submit(self, replica: int, lease: Lease) -> None:
        self._handed_out[lease.number] = self._now()
        again = sum(part.attempt > 0 for part in lease.parts)
        if again:
            self._meter.record(Metric.RETRIES, again)
        self._executor.submit(replica, lease)

    def wait(self, timeout: float) -> list[Event]:
        events = self._executor.wait(timeout)
        for event in events:
            self._count(event)
        return events

    def end(self, replica: int, detail: str) -> None:
        self._executor.end(replica, detail)

    def close(self) -> None:
        self._executor.close()

    def _count(self, event: Event) -> None:
        now = self._now()
        match event:
            case ReplicaReady(replica, info):
                self._serving[replica] = _Serving(info.lanes, now, tiles_at=now)
            case LeaseDone(replica, lease, outcomes):
                if began := self._handed_out.pop(lease, None):
                    self._meter.record(Metric.LEASES, now - began)
                for outcome in outcomes:
                    self._count_part(replica, outcome)
                self._tell_feed(replica, now)
            case ReplicaProgress(replica, tiles):
                self._tell_speed(replica, tiles, now)
            case ReplicaLost(replica, _, loss):
                self._meter.record(Metric.RESTARTS, 1, how=str(loss))
                if self._serving.pop(replica, None):
                    for gauge in (Metric.SPEED, Metric.FEED):
                        self._meter.record(gauge, 0.0, replica=str(replica))

    def _count_part(self, replica: int, outcome: PartOutcome) -> None:
        tag = str(replica)
        self._meter.record(Metric.TILES, outcome.classified, replica=tag)
        self._meter.record(Metric.DEVICE, outcome.device_seconds, replica=tag)
        decoding = max(0.0, outcome.seconds - outcome.device_seconds)
        self._meter.record(Metric.DECODE, decoding, replica=tag)
        if serving := self._serving.get(replica):
            serving.device_seconds += outcome.device_seconds

    def _tell_feed(self, replica: int, now: float) -> None:
        serving = self._serving.get(replica)
        if serving and now > serving.since:
            share = serving.device_seconds / (serving.lanes * (now - serving.since))
            self._meter.record(Metric.FEED, min(1.0, share), replica=str(replica))

    def _tell_speed(self, replica: int, tiles: int, now: float) -> None:
        serving = self._serving.get(replica)
        if serving and now - serving.tiles_at >= _SPEED_SECONDS:
            speed = (tiles - serving.tiles) / (now - serving.tiles_at)
            self._meter.record(Metric.SPEED, speed, replica=str(replica))
            serving.tiles, serving.tiles_at = tiles, now
