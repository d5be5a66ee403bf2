"""What a lease costs the driver: the dispatcher, and Ray's calls around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

import benchmarks.echo
from benchmarks.echo import EchoReplica
from cvm_batch.archives.address import SlideAddress
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.precision import Precision
from cvm_batch.results.layout import RunName
from cvm_batch.screening import ray_executor
from cvm_batch.screening.dispatcher import Dispatcher
from cvm_batch.screening.executor import LeaseDone, ReplicaProgress, ReplicaReady
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.ray_executor import RayExecutor
from cvm_batch.screening.work import ReplicaSpec, SlideSource

#: In a lease: a GPU's of 64,000 tiles holds some slides of 10,000.
_SLIDES = 8
_SLIDE_TILES = 8
#: Four of these are a lease as long as no speed is known, and none ever is.
_POLICY = LeasePolicy(batch_size=_SLIDES * _SLIDE_TILES // 4, lease_seconds=1e9)
#: Answers that are awaited at once: two leases and a sign of life for each replica.
_AWAITED = (16, 128, 1_024, 3_072)


def lease_figures(folder: Path, replicas: Sequence[int], leases: int) -> dict[str, Any]:
    """Of so many leases, by the number of replicas; then of `ray.wait` by that of answers."""
    ray.cloudpickle.register_pickle_by_value(benchmarks.echo)
    # Echoes in the place of real replicas; all else is as in a run.
    ray_executor.ReplicaActor = EchoReplica  # type: ignore[assignment, attr-defined]
    figures: dict[str, Any] = {}
    for count in replicas:
        with _ray(count):
            found = _leases(folder, count, leases)
        figures |= {f"{count} replicas: {name}": value for name, value in found.items()}
    with _ray(1):
        return figures | _waits()


@contextmanager
def _ray(cpus: int) -> Iterator[None]:
    """As `RayExecutor` starts it, with more CPUs than there are: echoes hardly use theirs."""
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=2**28,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _leases(folder: Path, replicas: int, leases: int) -> dict[str, float]:
    dispatcher = Dispatcher(_POLICY)
    for number in range(leases * _SLIDES):
        address = SlideAddress(uri=f"/slides/night/slide-{number:06d}.zarr")
        dispatcher.add_slide(
            SlideSource(number, f"slide-{number:06d}.zarr", address, 64 * "0"), _SLIDE_TILES
        )
    spec = ReplicaSpec(
        bundle=folder,
        bundle_digest="",
        precision=Precision.FP32,
        backend=Backend.EAGER,
        batch_size=None,
        results=folder,
        run=RunName.new(datetime.now(UTC)),
    )
    with closing(RayExecutor(address="auto", replicas=replicas)) as executor:
        executor.hardware()  # cuts the replicas
        executor.start(spec)
        ready: list[int] = []
        while len(ready) < replicas:
            ready += [one.replica for one in executor.wait(1) if isinstance(one, ReplicaReady)]
        for replica in ready:
            dispatcher.add_replica(replica)
        began, cpu = time.perf_counter(), time.process_time()
        _drive(dispatcher, executor)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"leases_per_second": leases / seconds, "driver_cpu_ms_each": 1e3 * cpu / leases}


def _drive(dispatcher: Dispatcher, executor: RayExecutor) -> None:
    """The driver's loop, without the slides' rows."""
    while not dispatcher.done:
        now = time.time()
        for replica in dispatcher.hungry():
            while lease := dispatcher.next_lease(replica, now):
                executor.submit(replica, lease)
        for event in executor.wait(0.5):
            match event:
                case LeaseDone(_, lease_number, outcomes):
                    dispatcher.lease_done(lease_number, outcomes, now)
                case ReplicaProgress(replica, tiles):
                    dispatcher.note_progress(replica, tiles, now)
                case _:
                    raise AssertionError(f"an echo does not fail: {event}")
        dispatcher.overdue(now)


def _waits() -> dict[str, float]:
    """Milliseconds of one `ray.wait` for the first of so many answers, none of which is there."""

    class Silent:
        async def answer(self) -> None:
            await asyncio.sleep(3600)

    silent = ray.remote(Silent).options(num_cpus=0, max_concurrency=max(_AWAITED)).remote()
    answers = [silent.answer.remote() for _ in range(max(_AWAITED))]
    figures = {}
    for awaited in _AWAITED:
        calls, rounds = answers[:awaited], 20
        began = time.process_time()
        for _ in range(rounds):
            ray.wait(calls, num_returns=1, timeout=0)
        spent = (time.process_time() - began) / rounds
        figures[f"ray.wait for {awaited} answers, ms"] = 1e3 * spent
    return figures
