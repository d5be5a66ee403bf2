"""Replicas as real Ray actors; tests/faults/ kills them, and the nodes that they run on."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster
from ray.exceptions import RayActorError, RayTaskError
from safetensors.numpy import load_file, save_file

from cvm_batch.errors import (
    CommitError,
    ExitCode,
    RunAbortedError,
    SentinelError,
    UsageError,
)
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.bundle import SENTINELS_FILE, SPEC_FILE, Bundle, file_sha256
from cvm_batch.model.precision import Precision
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.screening import ray_actor, ray_executor
from cvm_batch.screening.executor import Event, Executor, LeaseDone, ReplicaLost, ReplicaReady
from cvm_batch.screening.ray_actor import ReplicaActor
from cvm_batch.screening.ray_calls import Actor, Call, Kind
from cvm_batch.screening.ray_executor import START_SECONDS, RayExecutor
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import DecodeOn, ExecutorKind, Settings
from cvm_batch.screening.shares import Node, Share
from cvm_batch.screening.summary import Progress, RunSummary
from cvm_batch.screening.visibility import Needs
from cvm_batch.screening.work import Lease, Loss, Part
from tests.archives import making
from tests.faults.killers import arm
from tests.screening.test_cluster_decoding import planned
from tests.screening.test_local_executor import spec_of
from tests.screening.test_run import (
    by_slide,
    comparable,
    flip_byte_in_member,
    many_slides,
    tiles,
    undisturbed,
)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def settings(tmp_path: Path, tiny_bundle: Bundle) -> Settings:
    many_slides(tmp_path / "slides", 30)
    return Settings(
        inputs=(str(tmp_path / "slides"),),
        model=str(tiny_bundle.path),
        out=tmp_path / "results",
        batch_size=8,
        executor=ExecutorKind.LOCAL,  # the tests bring their own Ray executor
    )


def replica_processes() -> list[int]:
    """Process IDs of the replicas of this test's own Ray."""
    return processes("ray::ReplicaActor")


def processes(*titles: str) -> list[int]:
    """Process IDs of this test's own Ray, by how their titles begin."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.decode(errors="replace").startswith(titles) and os.getpid() in ancestors(
            folder.name
        ):
            found.append(int(folder.name))
    return sorted(found)


def ancestors(process: str) -> Iterator[int]:
    while process != "0":
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return
        process = stat.rpartition(")")[2].split()[1]
        yield int(process)


def replicas_seen(settings: Settings) -> int:
    return len(manifest(settings)["replicas"])


def replicas_lost(settings: Settings) -> int:
    return len(manifest(settings)["replicas_lost"])


def manifest(settings: Settings) -> Any:
    (path,) = (settings.out / "runs").glob("*.json")
    return json.loads(path.read_text())


def once_under_way(act: Callable[[], None]) -> Callable[[Progress], None]:
    """Call ``act`` once, when the first tiles are counted."""
    done = False

    def report(progress: Progress) -> None:
        nonlocal done
        if progress.tiles_done and not done:
            done = True
            act()

    return report


class Watched(RayExecutor):
    """Remembers how replicas were lost."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.losses: list[Loss] = []

    def wait(self, timeout: float) -> list[Event]:
        events = super().wait(timeout)
        self.losses += [event.loss for event in events if isinstance(event, ReplicaLost)]
        return events


def run_on(executor: Executor, settings: Settings, **options: Any) -> RunSummary:
    try:
        return run(settings, executor=executor, **options)
    finally:
        ray.shutdown()


def test_a_run_on_ray_equals_a_local_one(settings: Settings, tmp_path: Path) -> None:
    summary = run_on(RayExecutor(replicas=2), settings)
    assert summary.exit_code is ExitCode.COMPLETE
    assert comparable(settings) == undisturbed(settings, tmp_path / "local")
    assert replica_processes() == []


def test_a_bundle_that_fails_its_sentinels_stops_the_run(
    settings: Settings, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(tiny_bundle.path, bad)
    arrays = load_file(bad / SENTINELS_FILE)
    arrays["probabilities"] = np.roll(arrays["probabilities"], 1, axis=1)
    save_file(arrays, bad / SENTINELS_FILE)
    spec = json.loads((bad / SPEC_FILE).read_text())
    spec["sentinels_sha256"] = file_sha256(bad / SENTINELS_FILE)
    (bad / SPEC_FILE).write_text(json.dumps(spec))
    with pytest.raises(SentinelError, match="does not reproduce"):
        run_on(RayExecutor(), replace(settings, model=str(bad)))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_costs_nothing_but_time(
    settings: Settings, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_LOOK_SECONDS", 0.5)
    worker = next(iter(cluster.worker_nodes))

    def remove() -> None:
        cluster.remove_node(worker, allow_graceful=False)

    many_slides(settings.inputs[0], 100)  # not over before the loss is noticed
    executor = Watched(address=cluster.address)
    summary = run_on(executor, settings, report=once_under_way(remove))
    assert summary.exit_code is ExitCode.COMPLETE
    assert executor.losses == [Loss.NODE_LOST], "no slide is to be charged, nor a start to be tried"
    assert comparable(settings) == undisturbed(settings, tmp_path / "undisturbed")


def test_a_lost_node_takes_its_idle_replicas_with_it_at_once(
    tiny_bundle: Bundle, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that nothing was asked of says nothing, and would be handed what the other had."""
    monkeypatch.setattr(ray_executor, "_LOOK_SECONDS", 600.0)
    cluster.remove_node(next(iter(cluster.worker_nodes)))
    node = cluster.add_node(num_cpus=2)
    making.write_zip(tmp_path / "a.zip", tiles(8, seed=1))
    results = ResultsFolder(tmp_path / "results")
    results.prepare()
    with closing(RayExecutor(address=cluster.address, replicas=3)) as executor:
        executor.hardware()
        executor.start(spec_of(tiny_bundle, results))
        ready: list[ReplicaReady] = []
        while len(ready) < 3:
            ready += [event for event in executor.wait(0.5) if isinstance(event, ReplicaReady)]
        there = [n for n, actor in executor._actors.items() if actor.share.node == node.node_id]
        assert len(there) == 2
        cluster.remove_node(node, allow_graceful=False)
        for number in itertools.count():  # its processes live on for a moment
            executor.submit(there[0], Lease(number, (Part(planned(tmp_path / "a.zip"), 0, 8),)))
            events: list[Event] = []
            while not any(isinstance(event, LeaseDone | ReplicaLost) for event in events):
                events = executor.wait(0.5)
            lost = [event for event in events if isinstance(event, ReplicaLost)]
            if lost:
                break
    assert {event.replica: event.loss for event in lost} == dict.fromkeys(there, Loss.NODE_LOST)


def answering(monkeypatch: pytest.MonkeyPatch, answers: Mapping[Call, Any]) -> RayExecutor:
    """One without a cluster, whose replicas have just given these answers, or died of them."""
    executor = RayExecutor()

    def get(call: Call) -> Any:
        if isinstance(answers[call], Exception):
            raise answers[call]
        return answers[call]

    fake = SimpleNamespace(
        wait=lambda calls, **_: (calls, []), get=get, kill=lambda actor: None, remote=ray.remote
    )
    monkeypatch.setattr(ray_executor, "ray", fake)
    monkeypatch.setattr(executor, "_ask_for_progress", lambda: None)
    monkeypatch.setattr(executor, "_fill", lambda nodes: None)
    executor._cluster = cast(Any, SimpleNamespace(lost=lambda node: True, nodes=list, address=None))
    executor._fleet = cast(Any, SimpleNamespace(started=id, answered=id, misplaced=lambda *_: []))
    executor._looked_at = math.inf
    for call in answers:
        share = Share("node", call.replica, 0, 1, 1)
        executor._actors[call.replica] = Actor(None, share, cast(Any, None), 0.0)
        executor._calls[call] = call
        if call.kind is Kind.LEASE:
            executor._serving.add(call.replica)
    return executor


def test_what_was_answered_before_a_node_was_lost_is_told_before_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the answer would be nobody's, and a replica ready that is gone."""
    executor = answering(
        monkeypatch,
        {
            Call(0, Kind.LEASE, 10): RayActorError(),
            Call(1, Kind.START): "info",
            Call(2, Kind.LEASE, 11): ["outcome"],
        },
    )
    told = [(type(event), event.replica) for event in executor.wait(0.0)]
    assert sorted(told[:3], key=lambda each: each[1]) == [
        (ReplicaLost, 0),
        (ReplicaReady, 1),
        (LeaseDone, 2),
    ]
    assert sorted(told[3:], key=lambda each: each[1]) == [(ReplicaLost, 1), (ReplicaLost, 2)]
    assert executor._actors == {}


def test_what_was_answered_with_a_fatal_error_is_told_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And so committed: the next submit need not do it again."""
    full = RayTaskError("classify", "traceback", CommitError("the disk is full"))
    executor = answering(
        monkeypatch, {Call(0, Kind.LEASE, 10): full, Call(1, Kind.LEASE, 11): ["outcome"]}
    )
    monkeypatch.setattr(executor, "_goes_on_without", lambda node, error: False)
    assert [(type(event), event.replica) for event in executor.wait(0.0)] == [(LeaseDone, 1)]
    for _ in range(2):
        with pytest.raises(CommitError, match="the disk is full"):
            executor.wait(0.0)


def test_a_replica_whose_start_nobody_read_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver may have waited for its results' store for longer than a start may take."""
    executor = answering(monkeypatch, {Call(0, Kind.START): "info"})
    executor._cluster = cast(
        Any, SimpleNamespace(nodes=lambda: [Node("node", 2, 0, 1, 0)], address=None)
    )
    executor._looked_at = -math.inf
    executor._placed = {0: time.monotonic() - START_SECONDS - 100}
    (event,) = executor.wait(0.0)
    assert isinstance(event, ReplicaReady)


def test_nodes_that_lack_a_share_cost_nothing_but_themselves(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one the slides are not mounted, on another the results folder takes no cells."""
    arm(tmp_path / "armed", monkeypatch)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    executor = Watched(address=cluster.address)
    many_slides(settings.inputs[0], 100)
    try:
        cluster.add_node(num_cpus=1, env_vars={"UNMOUNTED": settings.inputs[0]})
        cluster.add_node(num_cpus=1, env_vars={"NO_ROOM": str(settings.out / "cells")})
        summary = run_on(executor, settings)
    finally:
        cluster.shutdown()
    assert summary.exit_code is ExitCode.COMPLETE
    told = " ".join(manifest(settings)["replicas_lost"])
    assert f"on its node: no {settings.inputs[0]}/000.zip" in told
    assert "could not be committed" in told
    assert comparable(settings) == undisturbed(settings, tmp_path / "undisturbed")


def test_a_run_that_sees_its_slides_on_no_node_ends_soon(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm(tmp_path / "armed", monkeypatch)
    cluster = Cluster()
    try:
        cluster.add_node(
            num_cpus=1, include_dashboard=False, env_vars={"UNMOUNTED": settings.inputs[0]}
        )
        with pytest.raises(RunAbortedError, match=r"before they could serve.*on its node: no /"):
            run_on(RayExecutor(address=cluster.address), settings)
    finally:
        cluster.shutdown()
    assert manifest(settings)["state"] == "aborted"


def test_a_cluster_that_grows_by_itself_is_asked_for_nodes(
    tiny_bundle: Bundle, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test is the autoscaler: it sees what waits for room, and adds a node for it."""
    monkeypatch.setattr(ray_executor, "_BUSY_SECONDS", 1.0)
    monkeypatch.setattr(ray_executor, "_LOOK_SECONDS", 0.5)
    cluster.remove_node(next(iter(cluster.worker_nodes)))
    spec = spec_of(tiny_bundle, ResultsFolder(tmp_path))

    def asked_for() -> list[Any]:
        demands = get_cluster_status(cluster.address).resource_demands
        return list(demands.ray_task_actor_demand)

    ready: set[int] = set()
    added = False
    with closing(RayExecutor(address=cluster.address)) as executor:
        executor.hardware()
        executor.start(spec)
        while len(ready) < 2 or asked_for():  # both are idle then, and nobody wants more
            events = executor.wait(0.5)
            assert not any(isinstance(event, ReplicaLost) for event in events)
            ready |= {event.replica for event in events if isinstance(event, ReplicaReady)}
            if not added and asked_for():
                cluster.add_node(num_cpus=1)
                added = True


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A node with a GPU, as far as Ray knows, and one with CPUs; replicas run on a CPU."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=2, num_gpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_replicas_share_a_gpu_and_the_cluster_decodes(
    settings: Settings, gpus: Cluster, tmp_path: Path
) -> None:
    """With damaged slides, and a process that decodes killed meanwhile."""
    slides = Path(settings.inputs[0])
    many_slides(slides, 12)
    making.write_zip(slides / "damaged.zip", tiles(20, seed=7))
    flip_byte_in_member(slides / "damaged.zip")
    making.write_folder(slides / "holed", tiles(20, seed=8))
    sorted((slides / "holed").iterdir())[3].write_bytes(b"no image")

    killed = []

    def kill() -> None:
        for process in processes("ray::read_slide", "ray::describe_slide", "ray::IDLE"):
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    executor = RayExecutor(address=gpus.address, replicas_per_gpu=2, decode_on=DecodeOn.CLUSTER)
    on_gpus = replace(settings, precision=Precision.FP32, backend=Backend.EAGER)
    summary = run_on(executor, on_gpus, report=once_under_way(kill))
    assert killed
    assert {slide.slide_id: slide.reason for slide in summary.not_complete} == {
        "damaged.zip": "checksum_mismatch",
        "holed": "unreadable_tiles",
    }
    assert (replicas_seen(settings), replicas_lost(settings)) == (2, 0)
    assert comparable(on_gpus) == undisturbed(on_gpus, tmp_path / "undisturbed")
    told = ("detail", "integrity", "cells_unreadable", "counts_at_least")
    here = by_slide(replace(on_gpus, out=tmp_path / "undisturbed"))
    assert all(
        row[name] == here[slide][name] for slide, row in by_slide(on_gpus).items() for name in told
    )


def test_an_address_where_nothing_answers_is_told(settings: Settings) -> None:
    with pytest.raises(UsageError, match="Ray could not be reached"):
        run_on(RayExecutor(address="127.0.0.1:1"), settings)


def test_a_replica_that_never_starts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that hangs: the dispatcher watches those that serve alone."""
    executor = RayExecutor()
    executor._placed = {0: 100.0, 1: 100.0, 2: 300.0}
    executor._serving = {1}
    monkeypatch.setattr(
        executor, "_lost", lambda call, detail, loss: ReplicaLost(call.replica, detail, loss)
    )
    executor._give_up_those_that_do_not_start(100.0 + START_SECONDS)
    assert executor._lost_already == []
    executor._give_up_those_that_do_not_start(101.0 + START_SECONDS)
    (lost,) = executor._lost_already
    assert isinstance(lost, ReplicaLost)
    assert (lost.replica, lost.loss) == (0, Loss.HUNG)


def test_a_look_at_a_dead_mount_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def dead(*_: object) -> list[str]:
        released.wait(60)
        return []

    monkeypatch.setattr(ray_actor, "lacking_here", dead)
    monkeypatch.setattr(ray_actor, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(ray_actor, "import_replica", lambda: None)
    monkeypatch.setattr(ray_actor, "without", lambda *_: None)
    (lacking,) = ReplicaActor().look(cast(Needs, None), "node")
    released.set()
    assert "no answer from its mounts" in lacking
