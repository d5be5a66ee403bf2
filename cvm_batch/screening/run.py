"""One run from settings to summary: plans, drives, records how it ended."""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

from cvm_batch.archives.places.files import printable
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import (
    CommitError,
    CvmBatchError,
    ExitCode,
    RunAbortedError,
    TakenOverError,
)
from cvm_batch.jobfiles import SHIPPED_BUNDLE
from cvm_batch.logs import log_event
from cvm_batch.model.backends.choosing import choose_backend
from cvm_batch.model.bundle import Bundle
from cvm_batch.model.precision import choose_precision
from cvm_batch.model.registry import find_bundle
from cvm_batch.notices.sending import Notices
from cvm_batch.results.audit.runs import record_end, record_start
from cvm_batch.results.claims import Hold
from cvm_batch.results.exporting.summary import Lacking, summary_without_names
from cvm_batch.results.folder import OUTAGE_SECONDS, ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.live import LiveFiles
from cvm_batch.results.manifest import RunManifest, RunState
from cvm_batch.results.schemas import Status
from cvm_batch.results.sealing import exclusive, write_while_held
from cvm_batch.results.slides import History
from cvm_batch.screening.clock import Clock
from cvm_batch.screening.commits import Commits
from cvm_batch.screening.driver import Driver
from cvm_batch.screening.executor import Executor
from cvm_batch.screening.metrics import Meter, Metered, NoMeter
from cvm_batch.screening.plan import Plan
from cvm_batch.screening.planning import make_plan, plan_slides
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import NotComplete, Progress, RunSummary
from cvm_batch.screening.visibility import samples_of
from cvm_batch.screening.wishes import Prioritise, WatchedManifests, Wish
from cvm_batch.screening.work import ReplicaSpec
from cvm_batch.screening.workload import workload

_LOG = logging.getLogger(__name__)


def run(
    settings: Settings,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    executor: Executor | None = None,
    notices: Notices | None = None,
    at_end: Callable[[str], None] = lambda run_id: None,
) -> RunSummary:
    """Classify what is not done yet, and commit one row per slide.

    ``report`` is called about twice a second. Once ``should_stop`` says so, running
    leases are finished, and the rest is left for the next run. ``notices`` go out at its end,
    however it ends, and after them ``at_end`` is called with its run_id. Raises UsageError
    before anything is classified, RunAbortedError where the run could not go on.
    """
    bundle = find_bundle(settings.model)
    results = ResultsFolder(settings.out, outage_seconds=OUTAGE_SECONDS)
    results.prepare()
    executor, meter = (executor, NoMeter()) if executor else _executor(settings)
    metered = Metered(executor, meter)
    name = RunName.new(datetime.now(UTC))
    live = LiveFiles(results, name)
    notices = notices or Notices()
    with exclusive(results, name) as hold, closing(metered):
        try:
            made = _Run(
                settings, bundle, results, hold, live, should_stop, name, metered, notices, at_end
            )
            return made.run(report)
        finally:
            results.wait_no_longer()
            live.remove()


def _executor(settings: Settings) -> tuple[Executor, Meter]:
    if settings.executor is ExecutorKind.LOCAL:
        from cvm_batch.screening.local_executor import LocalExecutor

        return LocalExecutor(), NoMeter()
    from cvm_batch.screening.ray_executor import RayExecutor
    from cvm_batch.screening.ray_meter import RayMeter

    executor = RayExecutor(
        address=settings.address,
        replicas=settings.replicas,
        replicas_per_gpu=settings.replicas_per_gpu,
        decode_on=settings.decode_on,
    )
    return executor, RayMeter()


class _Run:
    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        results: ResultsFolder,
        hold: Hold,
        live: LiveFiles,
        should_stop: Callable[[], bool],
        name: RunName,
        executor: Metered,
        notices: Notices,
        at_end: Callable[[str], None],
    ) -> None:
        self._clock = Clock()
        self._began = self._clock.now()
        self._settings = settings
        self._bundle = bundle
        self._results = results
        self._hold = hold
        self._live = live
        self._should_stop = should_stop
        self._name = name
        self._executor = executor
        self._notices = notices
        self._at_end = at_end
        self._audit: Mapping[str, Any] | None = None
        self._planning_stops()  # which tells of the run, before nodes are asked and files listed
        hardware = executor.hardware()
        self._precision = choose_precision(hardware.device_type, settings.precision)
        history = History.read(results)
        self._planner = partial(
            plan_slides,
            bundle=bundle,
            precision=self._precision,
            history=history,
            options=settings.opening(bundle.spec),
            retry=settings.retry,
            rehash=settings.rehash,
        )
        planner = partial(
            self._planner,
            quiet_since=settings.quiet_since(self._began),
            work_waits=executor.prepare,
            should_stop=self._planning_stops,
        )
        self._listed = plan = make_plan(settings.inputs, planner)
        if settings.retry:
            plan = plan.with_unlisted(history)
        self._planned = self._ended = self._clock.now()
        work = workload(self._listed.tiles, bundle.spec, hardware)
        self._backend = choose_backend(work, self._precision, settings.backend)
        spec = ReplicaSpec(
            bundle=bundle_everywhere(settings.model, bundle),
            bundle_digest=bundle.digest,
            precision=self._precision,
            backend=self._backend,
            batch_size=settings.batch_size,
            results=results.everywhere,
            run=self._name,
            opening=settings.opening(bundle.spec),
            samples=samples_of(slide.address.uri for slide in self._listed.slides),
        )
        commits = Commits(results, self._name, self._clock.now())
        self._driver = Driver(
            plan.prioritised(settings.priorities),
            bundle,
            spec,
            executor,
            commits,
            self._clock,
            until=settings.until,
            patience=settings.patience_seconds,
        )

    def _planning_stops(self) -> bool:
        """Tell that the run plans; whether it is to stop."""
        now = self._clock.now()
        self._live.tell(now, {"planning_since": self._began})
        too_late = self._settings.until is not None and now >= self._settings.until
        return too_late or self._stop_wanted()

    def _stop_wanted(self) -> bool:
        self._hold.check()
        return self._should_stop() or self._live.stop_wanted(self._clock.now())

    def run(self, report: Callable[[Progress], None]) -> RunSummary:
        watched = WatchedManifests(self._settings.inputs, self._listed, self._plan_further)
        self._begin()

        def tell(progress: Progress) -> None:
            report(progress)
            self._executor.told(progress, self._driver.commits.by_status)
            now = self._clock.now()
            since = self._driver.serving_since
            trouble = watched.trouble and printable(watched.trouble)
            self._live.tell(now, {**asdict(progress), "serving_since": since, "trouble": trouble})

        def wishes() -> Sequence[Wish]:
            asked = self._live.priorities_wanted(self._clock.now())
            return [*starmap(Prioritise, asked), *watched.wishes()]

        try:
            with closing(watched):
                self._driver.drive(tell, self._stop_wanted, wishes)
            self._driver.commits.flush()
            self._ended = self._clock.now()
            self._executor.close()  # what still runs belongs to slides that have failed
            self._hold.check(now=True)  # what is cleared away is not another run's
            self._driver.commits.remove_superseded()
            summary = self._summary()
            manifest = self._recorded(
                self._manifest(summary.state, summary=summary, exit_code=summary.exit_code)
            )
            self._write(manifest)
        except BaseException as error:
            self._abort(error)
            if isinstance(error, CommitError | TakenOverError):
                self._hold.check(now=True)  # where another run took over, says which one
            raise
        self._log("run ended", manifest)
        self._notify(manifest)
        self._at_end(self._name.run_id)
        return summary

    def _begin(self) -> None:
        self._hold.check(now=True)
        manifest = self._manifest(RunState.RUNNING)
        self._audit = record_start(self._results, manifest).reference()
        self._write(replace(manifest, audit=self._audit))
        self._log("run started", manifest)

    def _plan_further(self, slides: Sequence[ListedSlide], should_stop: Callable[[], bool]) -> Plan:
        quiet_since = self._settings.quiet_since(self._clock.now())
        found = self._planner(slides, quiet_since=quiet_since, should_stop=should_stop)
        return found.prioritised(self._settings.priorities)

    def _abort(self, error: BaseException) -> None:
        """Save what can be saved; whatever else goes wrong now, ``error`` is the cause."""
        self._results.wait_no_longer()
        stopped = isinstance(error, KeyboardInterrupt)
        code = error.exit_code if isinstance(error, CvmBatchError) else ExitCode.ABORTED
        with suppress(Exception):
            self._driver.commits.flush()
        self._driver.commits.give_up()
        with suppress(Exception):
            manifest = self._manifest(
                RunState.STOPPED if stopped else RunState.ABORTED,
                error=str(error) or repr(error),
                exit_code=ExitCode.STOPPED if stopped else code,
            )
            with suppress(Exception):
                manifest = self._recorded(manifest)
            with suppress(Exception):
                self._write(manifest)
            self._log("run ended", manifest)
            with suppress(Exception):  # last of what must be: it may be a replica that hangs
                self._executor.close()
            if not stopped:  # whoever stops it at once sits before it
                self._notify(manifest)
                self._at_end(self._name.run_id)

    def _notify(self, manifest: RunManifest) -> None:
        """Tell of the run's end, and in the manifest what became of that."""
        if not self._notices.channels:
            return
        lacking = [
            Lacking(one.slide_id, one.status, one.reason)
            for one in self._driver.commits.not_complete
        ]
        summary = summary_without_names(asdict(manifest), lacking, self._notices.pseudonyms)
        told = self._notices.send(summary)
        with suppress(RunAbortedError):  # the run has ended, and its manifest is written
            self._write(replace(manifest, notices=told))

    def _summary(self) -> RunSummary:
        driver, commits = self._driver, self._driver.commits
        left = self._driver.plan.slide_count - commits.by_status.total()
        since = driver.serving_since
        seconds = self._ended - since if since else 0.0
        return RunSummary(
            run_id=self._name.run_id,
            state=RunState.STOPPED if left else RunState.FINISHED,
            bundle=self._bundle.spec.name,
            precision=str(self._precision),
            backend=str(self._backend),
            by_status=commits.by_status,
            settled=self._settled(),
            settled_not_complete=[
                NotComplete(slide.slide_id, *asdict(slide.found).values())
                for slide in self._driver.plan.settled
                if slide.found.status is not Status.COMPLETE
            ],
            left=left,
            fresh=len(driver.plan.fresh),
            not_complete=commits.not_complete,
            ignored=len(self._driver.plan.ignored),
            cells=commits.classified,
            seconds_starting=since - self._planned if since else 0.0,
            seconds_classifying=seconds,
            tiles_per_second=commits.classified / seconds if seconds else None,
        )

    def _settled(self) -> Counter[Status]:
        return Counter(slide.found.status for slide in self._driver.plan.settled)

    def _log(self, message: str, manifest: RunManifest) -> None:
        log_event(
            _LOG,
            message,
            run_id=manifest.run_id,
            state=manifest.state,
            exit_code=manifest.exit_code,
            error=manifest.error,
            bundle_digest=self._bundle.digest,
            slides=manifest.slides,
            cells=manifest.cells,
        )

    def _recorded(self, manifest: RunManifest) -> RunManifest:
        """The run's last manifest, once the audit log tells of it. Raises RunAbortedError."""
        self._hold.check(now=True)
        return replace(manifest, audit=record_end(self._results, manifest).reference())

    def _write(self, manifest: RunManifest) -> None:
        """Raises TakenOverError."""
        write_while_held(self._results, self._hold, manifest)

    def _manifest(
        self,
        state: RunState,
        *,
        summary: RunSummary | None = None,
        exit_code: ExitCode | None = None,
        error: str | None = None,
    ) -> RunManifest:
        commits, settled = self._driver.commits, self._settled()
        seconds = {"planning": self._planned - self._began}
        if summary is not None:
            seconds["starting"] = summary.seconds_starting
            seconds["classifying"] = summary.seconds_classifying
            seconds["serving"] = self._driver.replica_seconds
        spec = self._bundle.spec.to_json()
        del spec["provenance"]  # long, and the digest stands for it
        return RunManifest(
            run_id=self._name.run_id,
            state=state,
            started_at=_iso(self._began),
            settings=asdict(self._settings.absolute()),  # for retry, which may be given anywhere
            bundle={"path": str(self._bundle.path), "digest": self._bundle.digest, **spec},
            precision=str(self._precision),
            backend=str(self._backend),
            executor=self._executor.name,
            versions=self._driver.versions,
            host={"cpus": usable_cpus(), "platform": platform.platform()},
            slides={
                "planned": self._driver.plan.slide_count,
                "fresh": len(self._driver.plan.fresh),
                **{f"settled_{status}": settled[status] for status in Status},
                **{str(status): commits.by_status[status] for status in Status},
            },
            cells={
                "expected": self._driver.plan.tiles,
                "classified": commits.classified,
                "unreadable": commits.unreadable,
            },
            ignored=[ignored._asdict() for ignored in self._driver.plan.ignored],
            replicas=[asdict(info) for info in self._driver.replicas_seen],
            replicas_lost=self._driver.replicas_lost,
            seconds=seconds,
            tiles_per_second=summary.tiles_per_second if summary else None,
            finished_at=None if state is RunState.RUNNING else _iso(self._clock.now()),
            exit_code=exit_code,
            error=printable(error) if error else None,
            audit=self._audit,
        )


def bundle_everywhere(model: str, bundle: Bundle) -> Path:
    """A bundle's folder, as replicas find it on their nodes."""
    return Path(SHIPPED_BUNDLE) if model == SHIPPED_BUNDLE else bundle.path


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
