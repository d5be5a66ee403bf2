"""What travels between the driver and the replicas. Plain data that pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import Reason, SlideError
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.precision import Precision
from cvm_batch.results.layout import RunName
from cvm_batch.results.schemas import Status

#: Faulty tiles whose details a row's sentence quotes.
FAULTS_TOLD = 3
#: A slide's score is the mean primary-group probability of this many cells.
TOP_CELLS = 20


@dataclass(frozen=True)
class SlideSource:
    """Which slide a part belongs to, and where a replica finds it."""

    number: int
    """The slide's place in the plan."""
    slide_id: str
    address: SlideAddress
    identity: str
    """As planned; a replica that sees another one refuses the slide."""
    chunk_tiles: int = 1
    """Tiles that the archive stores, and decodes, together."""

    @property
    def uri(self) -> str:
        return self.address.uri


@dataclass(frozen=True)
class Part:
    """One attempt at the tiles [start, stop) of one slide."""

    slide: SlideSource
    start: int
    stop: int
    attempt: int = 0
    """Counts from 0; an answer to any but the newest attempt is ignored."""
    errors: int = 0
    """Earlier attempts that ended in an error that may pass."""
    deaths: int = 0
    """Earlier attempts that killed their replica while they were alone on it."""
    nodes: int = 0
    """Earlier attempts whose node went away under them."""
    failed_on: tuple[int, ...] = ()
    """Replicas on which it ended in an error that may pass."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Lease:
    """Parts of one or many slides, handed to a replica at once."""

    number: int
    parts: tuple[Part, ...]

    @property
    def tiles(self) -> int:
        return sum(map(len, self.parts))


class Loss(StrEnum):
    """How a replica was lost."""

    DIED = "died"
    PREEMPTED = "preempted"
    """Its node was taken away, and the cluster says so: nothing it held is to blame."""
    NODE_LOST = "node_lost"
    """Its node went away. As a rule by itself; but a slide can use up a node's memory."""
    HUNG = "hung"
    """It got on with nothing, and was ended."""


@dataclass(frozen=True)
class Failure:
    """Why a slide, or a part of it, has no result or not a whole one."""

    reason: Reason
    detail: str

    @property
    def status(self) -> Status:
        """Unreadable tiles leave the others' counts standing; all else fails the slide."""
        lacking = {Reason.MISSING_TILES, Reason.UNREADABLE_TILES}
        return Status.INCOMPLETE if self.reason in lacking else Status.FAILED

    @classmethod
    def of(cls, error: SlideError) -> Failure:
        return cls(error.reason, str(error))


@dataclass(frozen=True)
class QualitySums:
    """Sums over classified tiles, so that parts add up."""

    confidence: float = 0.0
    brightness: float = 0.0
    brightness_squared: float = 0.0
    focus: float = 0.0

    def __add__(self, other: QualitySums) -> QualitySums:
        return QualitySums(
            self.confidence + other.confidence,
            self.brightness + other.brightness,
            self.brightness_squared + other.brightness_squared,
            self.focus + other.focus,
        )


@dataclass(frozen=True, kw_only=True)
class PartOutcome:
    """What a replica found in one part."""

    part: Part
    failure: Failure | None = None
    """Why nothing of the part counts; None where every tile is accounted for."""
    class_counts: tuple[int, ...] = ()
    """Cells per class in the bundle's order; they sum to ``classified``."""
    classified: int = 0
    unreadable: int = 0
    """Tiles that did not decode, or were missing."""
    missing: int = 0
    """Those of the unreadable that were not there at all."""
    fault_details: tuple[str, ...] = ()
    """What was wrong with the first few of them."""
    top_scores: tuple[float, ...] = ()
    """Primary-group probabilities of the most suspicious cells, at most TOP_CELLS."""
    top_classes: tuple[int, ...] = ()
    """Their most probable classes, places in the bundle's order."""
    quality: QualitySums = field(default_factory=QualitySums)
    integrity: str | None = None
    cells_file: str | None = None
    tops_file: str | None = None
    seconds: float = 0.0
    """Of decoding threads and the device together."""
    device_seconds: float = 0.0
    """Those of the device's lanes."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """All that a replica needs to start. Paths, not weights: it reads them itself."""

    bundle: Path
    bundle_digest: str
    precision: Precision
    backend: Backend
    batch_size: int | None
    """None: the engine's own choice."""
    results: Path | str
    run: RunName
    opening: OpenOptions = field(default_factory=OpenOptions)
    threads: int = field(default_factory=usable_cpus)
    """CPU threads for the model and, as many again, for decoding; the executor's to set."""
    samples: tuple[str, ...] = ()
    """Slides that a node must see before a replica serves on it."""
    readers: int | None = None
    """Blocks that are read at once; None: one in each thread."""


@dataclass(frozen=True, kw_only=True)
class ReplicaInfo:
    """What a replica says of itself once it has passed the sentinels."""

    device: str
    precision: str
    backend: str
    batch_size: int
    lanes: int
    """Batches that run at once."""
    sentinel_difference: float
    """Largest probability difference from the recorded outputs."""
    versions: Mapping[str, str]
    node: str = ""
    """The machine or the pod that it runs on, by its own name."""
