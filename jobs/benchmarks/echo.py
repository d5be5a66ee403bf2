"""Replicas that answer at once and classify nothing: what is left is the driver's own cost.

Imports neither PyTorch nor Ray, so that many of them fit on one machine.
"""

from __future__ import annotations

import pickle
from collections import deque
from typing import TypeVar

from cvm_batch.archives.archive import Integrity
from cvm_batch.model.classes import CVM_CERVIX_CLASSES
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import lease_file
from cvm_batch.screening.executor import Event, Hardware, LeaseDone, ReplicaReady
from cvm_batch.screening.settings import DecodeOn
from cvm_batch.screening.visibility import Needs
from cvm_batch.screening.work import TOP_CELLS, Lease, Part, PartOutcome, ReplicaInfo, ReplicaSpec

T = TypeVar("T")

#: Tiles that an echo says fill its lanes.
_BATCH = 8


class EchoReplica:
    """Stands in for `ReplicaActor`: the same calls, and outcomes of the same size."""

    def look(self, needs: Needs, node: str) -> list[str]:
        ResultsFolder(needs.results).replace(needs.probe_of(node), node.encode())
        return []

    def start(self, spec: ReplicaSpec, decode_on: DecodeOn = DecodeOn.REPLICA) -> ReplicaInfo:
        self._spec = spec
        self._tiles = 0
        return ReplicaInfo(
            device="echo",
            precision=str(spec.precision),
            backend=str(spec.backend),
            batch_size=_BATCH,
            lanes=2,
            sentinel_difference=0.0,
            versions={},
        )

    def classify(self, lease: Lease) -> list[PartOutcome]:
        self._tiles += lease.tiles
        file = lease_file(lease.number, 0)
        return [self._outcome(part, file) for part in lease.parts]

    def progress(self) -> tuple[int, int]:
        return self._tiles, 0

    def _outcome(self, part: Part, file: str) -> PartOutcome:
        run = self._spec.run
        return PartOutcome(
            part=part,
            class_counts=(len(part), *[0] * (len(CVM_CERVIX_CLASSES) - 1)),
            classified=len(part),
            top_scores=(0.5,) * min(TOP_CELLS, len(part)),
            top_classes=(0,) * min(TOP_CELLS, len(part)),
            integrity=str(Integrity.VERIFIED),
            cells_file=str(run.cells_folder / file),
            tops_file=str(run.tops_folder / file),
            seconds=0.01,
        )


class EchoExecutor:
    """Echoes in this process. Leases and outcomes are pickled, as on their way through Ray."""

    name = "echo"

    def __init__(self, replicas: int = 2) -> None:
        self._echoes = [EchoReplica() for _ in range(replicas)]
        self._events: deque[Event] = deque()
        self.leases = 0

    def hardware(self) -> Hardware:
        return Hardware("cpu", len(self._echoes))

    def prepare(self) -> None:
        pass

    def start(self, spec: ReplicaSpec) -> None:
        for number, echo in enumerate(self._echoes):
            self._events.append(ReplicaReady(number, echo.start(spec)))

    def submit(self, replica: int, lease: Lease) -> None:
        self.leases += 1
        outcomes = self._echoes[replica].classify(_sent(lease))
        self._events.append(LeaseDone(replica, lease.number, _sent(outcomes)))

    def wait(self, timeout: float) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def end(self, replica: int, detail: str) -> None:
        raise AssertionError("an echo does not hang")

    def close(self) -> None:
        pass


def _sent(value: T) -> T:
    sent: T = pickle.loads(pickle.dumps(value))  # noqa: S301 - our own
    return sent
