"""The Ray cluster that a run is on: how it is reached, which nodes it has, who answers."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import available_resources_per_node

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import UsageError
from cvm_batch.memory import let_children_keep_freed_memory
from cvm_batch.screening.executor import hardware_here
from cvm_batch.screening.shares import Node, Share

#: A node that does not answer at once is taken for lost.
_ANSWER_SECONDS = 2.0
#: By then Ray has noticed a dead node itself, and one that it still has is alive.
_RAY_NOTICES_SECONDS = 60.0


def this_machine() -> Node:
    """As the only node of a Ray of its own, that is not up yet."""
    hardware, cpus = hardware_here(), usable_cpus()
    gpus = hardware.processors if hardware.device_type == "cuda" else 0
    return Node("", cpus, gpus, cpus, gpus)


class RayCluster:
    """A cluster that runs, or a Ray of our own on this machine."""

    def __init__(self, address: str | None, object_store_bytes: int | None) -> None:
        """``object_store_bytes`` of a Ray of our own; None: what Ray takes by itself."""
        self.address = address
        self._object_store_bytes = object_store_bytes
        self._silent: dict[str, float] = {}

    def connect(self) -> None:
        """Connect once; raises UsageError where Ray cannot be reached or started."""
        with _our_sigterm():
            if not ray.is_initialized():
                self._start()

    def _start(self) -> None:
        # A hospital's cluster calls nobody: off unless somebody has switched it on.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            let_children_keep_freed_memory(os.environ)
            options |= {
                "num_cpus": usable_cpus(),
                "object_store_memory": self._object_store_bytes,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }
        try:
            _knock(self.address)
            ray.init(address=self.address or "local", **options)
        except (OSError, RuntimeError, ValueError) as error:
            where = self.address or "on this machine"
            raise UsageError(
                f"Ray could not be reached or started ({where}): {error}. Check --address, or "
                "use --executor local to run in this process."
            ) from error

    def nodes(self) -> list[Node]:
        """The nodes that are alive, but for those that were found lost just now."""
        free = available_resources_per_node()
        now = time.monotonic()
        return [
            as_node(node, free.get(node["NodeID"], {}))
            for node in ray.nodes()
            if node["Alive"] and now >= self._silent.get(node["NodeID"], now)
        ]

    def lost(self, name: str) -> bool:
        """Whether a node is gone. Ray takes a quarter of a minute to notice, and its tasks
        know no more meanwhile than that a connection broke: so the node itself is asked."""
        found = [node for node in ray.nodes() if node["NodeID"] == name and node["Alive"]]
        if not found:
            return True
        if time.monotonic() < self._silent.get(name, 0.0):
            return True
        try:
            place = (found[0]["NodeManagerAddress"], found[0]["NodeManagerPort"])
            socket.create_connection(place, timeout=_ANSWER_SECONDS).close()
        except OSError:
            self._silent[name] = time.monotonic() + _RAY_NOTICES_SECONDS
            return True
        return False

    def close(self) -> None:
        ray.shutdown()


class Bids:
    """Tasks that wait for what one more replica needs, and do nothing: so a cluster that grows
    by itself knows that it should. They end with the run, however it ends."""

    def __init__(self) -> None:
        self._waiting: list[Any] = []

    def granted(self) -> bool:
        """Whether there was room for one since this was last asked."""
        done, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=0)
        return bool(done)

    def keep(self, count: int, like: Share) -> None:
        """Have as many bids wait, no more and no less."""
        for surplus in self._waiting[count:]:
            ray.cancel(surplus)
        del self._waiting[count:]
        bid = ray.remote(num_cpus=like.cpus, num_gpus=like.gpus)(_nothing)
        self._waiting += [bid.remote() for _ in range(count - len(self._waiting))]


def _nothing() -> None:
    pass


def as_node(node: dict[str, Any], free: dict[str, float]) -> Node:
    """One of ``ray.nodes()``, and the resources of it that nobody holds."""
    total = node["Resources"]
    return Node(
        node["NodeID"],
        cpus=int(total.get("CPU", 0)),
        gpus=int(total.get("GPU", 0)),
        free_cpus=free.get("CPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
    )


def _knock(address: str | None) -> None:
    """Raise OSError where nothing listens: Ray would go on trying for minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Keep SIGTERM's handler, or take it back, which only the main thread can.

    ray.init puts one of its own there, which ends the process. And its C++ side puts absl's failure
    handler below, also where another thread started Ray: that calls ours, but prints a stack
    and aborts the process three seconds later.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
