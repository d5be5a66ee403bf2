"""Which figures a run tells, worked through by hand with a clock of the test's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cvm_batch.archives.address import SlideAddress
from cvm_batch.results.schemas import Status
from cvm_batch.screening.executor import (
    Event,
    Hardware,
    LeaseDone,
    ReplicaLost,
    ReplicaProgress,
    ReplicaReady,
)
from cvm_batch.screening.metrics import Metered, Metric
from cvm_batch.screening.summary import Progress
from cvm_batch.screening.work import (
    Lease,
    Loss,
    Part,
    PartOutcome,
    ReplicaInfo,
    ReplicaSpec,
    SlideSource,
)

SLIDE = SlideSource(0, "a", SlideAddress(uri="/a"), "identity")
INFO = ReplicaInfo(
    device="cpu",
    precision="fp32",
    backend="torch-eager",
    batch_size=8,
    lanes=2,
    sentinel_difference=0.0,
    versions={},
)


class Scripted:
    """An executor whose next events a test gives."""

    name = "scripted"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def hardware(self) -> Hardware:
        return Hardware("cpu", 1)

    def prepare(self) -> None: ...

    def start(self, spec: ReplicaSpec) -> None: ...

    def submit(self, replica: int, lease: Lease) -> None: ...

    def wait(self, timeout: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def end(self, replica: int, detail: str) -> None: ...

    def close(self) -> None: ...


class Recorded:
    """A meter that keeps counters' sums, gauges' last values and histograms' all."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, ...]] = Counter()
        self.last: dict[tuple[str, ...], float] = {}

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        assert tuple(tags) == metric.tags
        key = (metric.title, *tags.values())
        self.sums[key] += value  # type: ignore[assignment]
        self.last[key] = value


class Night:
    def __init__(self) -> None:
        self.clock = 100.0
        self.meter = Recorded()
        self.inner = Scripted()
        self.metered = Metered(self.inner, self.meter, now=lambda: self.clock)

    def at(self, clock: float, *events: Event) -> Sequence[Event]:
        self.clock = clock
        self.inner.events = list(events)
        return self.metered.wait(0)

    def hand_out(self, number: int, *, attempt: int = 0) -> Lease:
        lease = Lease(number, (Part(SLIDE, 0, 10, attempt=attempt), Part(SLIDE, 10, 20)))
        self.metered.submit(7, lease)
        return lease


def outcome(part: Part) -> PartOutcome:
    return PartOutcome(part=part, classified=len(part), seconds=5.0, device_seconds=3.0)


def test_a_lease_is_counted() -> None:
    night = Night()
    night.at(100.0, ReplicaReady(7, INFO))
    lease = night.hand_out(1)
    events = (LeaseDone(7, 1, [outcome(part) for part in lease.parts]),)
    assert night.at(104.0, *events) == list(events), "the driver gets every event"
    found = night.meter
    assert found.sums["cvm_batch_tiles", "7"] == 20
    assert found.sums["cvm_batch_device_seconds", "7"] == 6
    assert found.sums["cvm_batch_decode_seconds", "7"] == 4
    assert found.last["cvm_batch_lease_seconds",] == 4
    # 6 seconds of two lanes in 4 seconds.
    assert found.last["cvm_batch_feed_efficiency", "7"] == 0.75
    assert ("cvm_batch_retries",) not in found.sums


def test_speed_is_of_the_last_seconds() -> None:
    night = Night()
    night.at(100.0, ReplicaReady(7, INFO))
    night.at(101.0, ReplicaProgress(7, 50))
    assert ("cvm_batch_tiles_per_second", "7") not in night.meter.last, "too short to tell"
    night.at(104.0, ReplicaProgress(7, 200))
    assert night.meter.last["cvm_batch_tiles_per_second", "7"] == 50
    night.at(106.0, ReplicaProgress(7, 220))
    assert night.meter.last["cvm_batch_tiles_per_second", "7"] == 10


def test_losses_and_retries() -> None:
    night = Night()
    night.at(100.0, ReplicaReady(7, INFO))
    night.hand_out(1)
    night.at(101.0, ReplicaLost(7, "killed", Loss.PREEMPTED))
    night.hand_out(2, attempt=1)
    assert night.meter.sums["cvm_batch_restarts", "preempted"] == 1
    assert night.meter.sums["cvm_batch_retries",] == 1
    assert night.meter.last["cvm_batch_tiles_per_second", "7"] == 0, "the dead have no speed"


def test_slides_are_counted_once_however_often_they_are_told() -> None:
    night = Night()
    progress = Progress(
        tiles_done=120, tiles=100, slides_done=3, slides=5, not_complete=1, replicas=2
    )
    for ended in ({Status.COMPLETE: 2}, {Status.COMPLETE: 2, Status.FAILED: 1}):
        night.metered.told(progress, Counter(ended))
    assert night.meter.sums["cvm_batch_slides", "complete"] == 2
    assert night.meter.sums["cvm_batch_slides", "failed"] == 1
    assert night.meter.last["cvm_batch_queue_tiles",] == 0, "work done twice is no negative queue"
    assert night.meter.last["cvm_batch_queue_slides",] == 2


def test_every_figure_is_explained() -> None:
    operations = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert [m.exported_name for m in Metric if f"`{m.exported_name}`" not in operations] == []
