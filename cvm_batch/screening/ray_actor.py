"""What runs in a replica's own process on a Ray cluster.

PyTorch is loaded there alone, not in the driver, which names the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread

from cvm_batch.screening.importing import import_replica
from cvm_batch.screening.settings import DecodeOn
from cvm_batch.screening.visibility import Needs, lacking_here
from cvm_batch.screening.work import Lease, PartOutcome, ReplicaInfo, ReplicaSpec
from cvm_batch.without import without

#: To stat some slides and write a file: longer on a store that is asked again and again.
_LOOK_SECONDS = 120.0


class ReplicaActor:
    """A replica in a process of its own."""

    def __init__(self) -> None:
        without("pandas")
        # Some seconds, while the node is looked at.
        Thread(target=import_replica, daemon=True).start()

    def look(self, needs: Needs, node: str) -> Sequence[str]:
        """What the node does not see: then it would fail whatever it is handed, and quickly."""
        # In a thread that is left behind where it asks a dead mount, which never answers.
        asked = ThreadPoolExecutor(1).submit(lacking_here, needs, node)
        try:
            return asked.result(timeout=_LOOK_SECONDS)
        except TimeoutError:
            return [f"no answer from its mounts in {_LOOK_SECONDS:.0f} s"]

    def start(self, spec: ReplicaSpec, decode_on: DecodeOn) -> ReplicaInfo:
        from cvm_batch.screening.replica import Replica

        # Not in __init__: an error there would arrive as the actor's death, without its type.
        open_slide = None
        if decode_on is DecodeOn.CLUSTER:
            from cvm_batch.screening.cluster_decoding import ClusterArchive

            open_slide = partial(ClusterArchive, options=spec.opening)
        self._replica = Replica(spec, open_slide=open_slide)
        return self._replica.info()

    def classify(self, lease: Lease) -> Sequence[PartOutcome]:
        return self._replica.classify(lease)

    def progress(self) -> tuple[int, int]:
        """Tiles done with, and signs of other work."""
        return self._replica.tiles_done, self._replica.signs
