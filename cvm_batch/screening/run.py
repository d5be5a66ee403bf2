"""The driver of one run: plans, hands out leases, commits what comes back."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime

import torch

from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CommitError, CvmBatchError, RunAbortedError
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import Precision, choose_precision
from cvm_batch.model.registry import find_bundle
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.manifest import RunManifest, RunState, write_manifest
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import History
from cvm_batch.screening.commits import Commits
from cvm_batch.screening.dispatcher import Dispatcher, LeasePolicy
from cvm_batch.screening.executor import (
    Event,
    Executor,
    LeaseDone,
    LocalExecutor,
    ReplicaLost,
    ReplicaReady,
)
from cvm_batch.screening.plan import Plan, make_plan
from cvm_batch.screening.replica import ReplicaSpec, versions
from cvm_batch.screening.rows import RunContext, slide_row
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import Progress, RunSummary
from cvm_batch.screening.work import ReplicaInfo, SlideSource

#: Seconds without a single replica until the run is given up.
_START_TIMEOUT = 600.0
_TICK_SECONDS = 0.5


def run(
    settings: Settings,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    executor: Executor | None = None,
) -> RunSummary:
    """Classify what is not done yet, and commit one row per slide.

    ``report`` is called about twice a second. Once ``should_stop`` says so, running
    leases are finished, and the rest is left for the next run. Raises UsageError before
    anything is classified, RunAbortedError where the run could not go on.
    """
    bundle = find_bundle(settings.model)
    results = ResultsFolder(settings.out)
    results.prepare()
    executor = executor or _executor(settings)
    with results.exclusive(), closing(executor):
        return _Driver(settings, bundle, results, executor).run(report, should_stop)


def _executor(settings: Settings) -> Executor:
    if settings.executor is ExecutorKind.LOCAL:
        return LocalExecutor()
    from cvm_batch.screening.ray_executor import RayExecutor

    return RayExecutor(address=settings.address, replicas=settings.replicas)


class _Driver:
    def __init__(
        self, settings: Settings, bundle: Bundle, results: ResultsFolder, executor: Executor
    ) -> None:
        self._began = time.time()
        self._settings = settings
        self._bundle = bundle
        self._results = results
        self._executor = executor
        self._run = RunName.new(datetime.now(UTC))
        self._precision: Precision = choose_precision(
            torch.device(executor.device_type()), settings.precision
        )
        self._plan: Plan = make_plan(
            settings.inputs, bundle, self._precision, History.read(results)
        )
        self._planned = time.time()
        self._serving_since: float | None = None
        self._last_event = self._planned
        self._ended = self._planned
        self._stopped = False
        self._commits = Commits(results, self._run)
        self._replicas: dict[int, ReplicaInfo] = {}
        self._seen: list[ReplicaInfo] = []
        self._dispatcher: Dispatcher | None = None

    def run(
        self, report: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> RunSummary:
        write_manifest(self._results, self._run, self._manifest(RunState.RUNNING))
        try:
            for slide in self._plan.failed:
                self._commits.add(slide_row(self._context(), slide, None, self._planned), 0.0)
            if self._plan.slides:
                self._classify(report, should_stop)
            self._commits.flush()
            self._commits.remove_superseded()
            self._ended = time.time()
        except BaseException as error:
            with suppress(CommitError):
                self._commits.flush()
                aborted = self._manifest(RunState.ABORTED, error=error)
                write_manifest(self._results, self._run, aborted)
            raise
        summary = self._summary()
        write_manifest(self._results, self._run, self._manifest(summary.state, summary))
        return summary

    def _classify(
        self, report: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> None:
        self._executor.start(
            ReplicaSpec(
                bundle=self._bundle.path,
                bundle_digest=self._bundle.digest,
                precision=self._precision,
                batch_size=self._settings.batch_size,
                results=self._results.root.resolve(),
                run=self._run,
            )
        )
        report(self._progress())
        while not self._finished():
            for event in self._executor.wait(_TICK_SECONDS):
                self._handle(event)
            now = time.time()
            self._stopped = self._stopped or should_stop()
            if not self._stopped:
                self._hand_out(now)
            elif self._dispatcher is None or self._dispatcher.idle:
                break
            self._commits.flush_if_due(now)
            report(self._progress())
            if not self._replicas and now - self._last_event > _START_TIMEOUT:
                raise RunAbortedError(
                    f"No replica has come up within {_START_TIMEOUT:.0f} s. Check that the "
                    "cluster has free GPUs or CPUs, then submit again."
                )

    def _finished(self) -> bool:
        return self._dispatcher is not None and self._dispatcher.done

    def _handle(self, event: Event) -> None:
        now = time.time()
        match event:
            case ReplicaReady(replica, info):
                self._replicas[replica] = info
                self._seen.append(info)
                self._serving_since = self._serving_since or now
                self._dispatcher = self._dispatcher or self._new_dispatcher(info)
                self._dispatcher.add_replica(replica)
                ended = []
            case LeaseDone(_, lease, outcomes):
                assert self._dispatcher is not None
                ended = self._dispatcher.lease_done(lease, outcomes, now)
            case ReplicaLost(replica, detail):
                served = self._replicas.pop(replica, None) is not None
                lost = self._dispatcher.replica_lost if self._dispatcher and served else None
                ended = lost(replica, detail, now) if lost else []
        self._last_event = now
        for number in ended:
            self._end_slide(number, now)

    def _new_dispatcher(self, info: ReplicaInfo) -> Dispatcher:
        """The first replica says how large a batch is; leases are cut to fit."""
        sources, tiles = [], []
        for number, slide in enumerate(self._plan.slides):
            assert slide.info is not None
            sources.append(
                SlideSource(
                    number, slide.slide_id, slide.uri, slide.info.identity, slide.info.chunk_tiles
                )
            )
            tiles.append(slide.info.tiles)
        return Dispatcher(sources, tiles, LeasePolicy(batch_size=info.batch_size))

    def _hand_out(self, now: float) -> None:
        if self._dispatcher is None:
            return
        # A lease for each before a second for any: none waits while another hoards.
        handed_out = True
        while handed_out:
            handed_out = False
            for replica in self._replicas:
                lease = self._dispatcher.next_lease(replica, now)
                if lease is not None:
                    self._executor.submit(replica, lease)
                    handed_out = True

    def _end_slide(self, number: int, now: float) -> None:
        assert self._dispatcher is not None
        account = self._dispatcher.ledger.accounts[number]
        row = slide_row(self._context(), self._plan.slides[number], account, now)
        self._commits.add(row, now)
        account.counted.clear()  # the row has it all: memory stays flat over a long night

    def _context(self) -> RunContext:
        return RunContext(
            run_id=self._run.run_id,
            bundle=self._bundle,
            precision=str(self._precision),
            backend=self._seen[0].backend if self._seen else None,
            versions=self._seen[0].versions if self._seen else versions(),
        )

    def _progress(self) -> Progress:
        return Progress(
            tiles_done=self._dispatcher.ledger.tiles_accounted if self._dispatcher else 0,
            tiles=self._plan.tiles,
            slides_done=self._commits.by_status.total(),
            slides=len(self._plan.slides) + len(self._plan.failed),
            not_complete=len(self._commits.not_complete),
            replicas=len(self._replicas),
        )

    def _summary(self) -> RunSummary:
        planned = len(self._plan.slides) + len(self._plan.failed)
        left = planned - self._commits.by_status.total()
        since = self._serving_since
        seconds = self._ended - since if since else 0.0
        return RunSummary(
            run_id=self._run.run_id,
            state=RunState.STOPPED if left else RunState.FINISHED,
            bundle=self._bundle.spec.name,
            precision=str(self._precision),
            by_status=self._commits.by_status,
            settled=Counter(slide.status for slide in self._plan.settled),
            left=left,
            not_complete=self._commits.not_complete,
            ignored=len(self._plan.ignored),
            cells=self._commits.classified,
            seconds_starting=since - self._planned if since else 0.0,
            seconds_classifying=seconds,
            tiles_per_second=self._commits.classified / seconds if seconds else None,
        )

    def _manifest(
        self,
        state: RunState,
        summary: RunSummary | None = None,
        error: BaseException | None = None,
    ) -> RunManifest:
        settled = Counter(slide.status for slide in self._plan.settled)
        exit_code = summary.exit_code if summary else None
        if isinstance(error, CvmBatchError):
            exit_code = error.exit_code
        return RunManifest(
            run_id=self._run.run_id,
            state=state,
            started_at=_iso(self._began),
            settings=asdict(self._settings),
            bundle={"path": str(self._bundle.path), "digest": self._bundle.digest}
            | {k: v for k, v in self._bundle.spec.to_json().items() if k != "provenance"},
            precision=str(self._precision),
            executor=self._executor.name,
            versions=self._context().versions,
            host={"cpus": usable_cpus(), "platform": platform.platform()},
            slides={
                "planned": len(self._plan.slides) + len(self._plan.failed),
                **{f"settled_{status}": settled[status] for status in Status},
                **{str(status): self._commits.by_status[status] for status in Status},
            },
            cells={
                "expected": self._plan.tiles,
                "classified": self._commits.classified,
                "unreadable": self._commits.unreadable,
            },
            ignored=[{"path": str(path), "why": why} for path, why in self._plan.ignored],
            replicas=[asdict(info) for info in self._seen],
            seconds={"planning": self._planned - self._began}
            | (
                {
                    "starting": summary.seconds_starting,
                    "classifying": summary.seconds_classifying,
                }
                if summary
                else {}
            ),
            tiles_per_second=summary.tiles_per_second if summary else None,
            finished_at=None if state is RunState.RUNNING else _iso(time.time()),
            exit_code=exit_code,
            error=str(error) or repr(error) if error else None,
        )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
