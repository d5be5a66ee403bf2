"""One run from settings to summary: plans, drives, records how it ended."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime

import torch

from cvm_batch.archives.places.files import printable
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import CvmBatchError, ExitCode
from cvm_batch.model.backends.choosing import Work, choose_backend
from cvm_batch.model.bundle import Bundle, BundleSpec
from cvm_batch.model.precision import choose_precision
from cvm_batch.model.registry import find_bundle
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.live import LiveFiles
from cvm_batch.results.manifest import RunManifest, RunState, write_manifest
from cvm_batch.results.schemas import Status
from cvm_batch.results.slides import History
from cvm_batch.screening.clock import Clock
from cvm_batch.screening.commits import Commits
from cvm_batch.screening.driver import Driver
from cvm_batch.screening.executor import Executor, Hardware, LocalExecutor
from cvm_batch.screening.plan import Plan, make_plan
from cvm_batch.screening.replica import ReplicaSpec
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.screening.summary import NotComplete, Progress, RunSummary


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
        return _Run(settings, bundle, results, executor).run(report, should_stop)


def _executor(settings: Settings) -> Executor:
    if settings.executor is ExecutorKind.LOCAL:
        return LocalExecutor()
    from cvm_batch.screening.ray_executor import RayExecutor

    return RayExecutor(
        address=settings.address,
        replicas=settings.replicas,
        replicas_per_gpu=settings.replicas_per_gpu,
        decode_on=settings.decode_on,
    )


class _Run:
    def __init__(
        self, settings: Settings, bundle: Bundle, results: ResultsFolder, executor: Executor
    ) -> None:
        self._clock = Clock()
        self._began = self._clock.now()
        self._settings = settings
        self._bundle = bundle
        self._results = results
        self._executor = executor
        self._name = RunName.new(datetime.now(UTC))
        hardware = executor.hardware()
        device = torch.device(hardware.device_type)
        self._precision = choose_precision(device, settings.precision)
        history = History.read(results)
        self._plan: Plan = make_plan(
            settings.inputs,
            bundle,
            self._precision,
            history,
            settings.opening(bundle.spec),
            retry=settings.retry,
        )
        self._planned = self._ended = self._clock.now()
        work = _work(self._plan, bundle.spec, hardware)
        self._backend = choose_backend(work, self._precision, settings.backend)
        spec = ReplicaSpec(
            bundle=bundle.path,
            bundle_digest=bundle.digest,
            precision=self._precision,
            backend=self._backend,
            batch_size=settings.batch_size,
            results=results.root.resolve(),
            run=self._name,
            opening=settings.opening(bundle.spec),
        )
        commits = Commits(results, self._name, self._clock.now())
        self._driver = Driver(
            self._plan,
            bundle,
            spec,
            executor,
            commits,
            self._clock,
            until=settings.until,
            patience=settings.patience_seconds,
        )

    def run(
        self, report: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> RunSummary:
        self._write_manifest(RunState.RUNNING)
        live = LiveFiles(self._results, self._name)

        def tell(progress: Progress) -> None:
            report(progress)
            now = self._clock.now()
            since = self._driver.serving_since
            live.tell(now, {**asdict(progress), "serving_since": since})

        def stop_wanted() -> bool:
            return should_stop() or live.stop_wanted(self._clock.now())

        try:
            self._driver.drive(tell, stop_wanted)
            self._driver.commits.flush()
            self._ended = self._clock.now()
            self._executor.close()  # what still runs belongs to slides that have failed
            self._driver.commits.remove_superseded()
        except BaseException as error:
            self._abort(error)
            raise
        finally:
            live.remove()
        summary = self._summary()
        self._write_manifest(summary.state, summary=summary, exit_code=summary.exit_code)
        return summary

    def _abort(self, error: BaseException) -> None:
        """Save what can be saved; whatever else goes wrong now, ``error`` is the cause."""
        stopped = isinstance(error, KeyboardInterrupt)
        code = error.exit_code if isinstance(error, CvmBatchError) else ExitCode.ABORTED
        with suppress(Exception):
            self._executor.close()
        with suppress(Exception):
            self._driver.commits.flush()
        with suppress(Exception):
            self._write_manifest(
                RunState.STOPPED if stopped else RunState.ABORTED,
                error=str(error) or repr(error),
                exit_code=ExitCode.STOPPED if stopped else code,
            )

    def _summary(self) -> RunSummary:
        driver, commits = self._driver, self._driver.commits
        left = self._plan.slide_count - commits.by_status.total()
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
                for slide in self._plan.settled
                if slide.found.status is not Status.COMPLETE
            ],
            left=left,
            not_complete=commits.not_complete,
            ignored=len(self._plan.ignored),
            cells=commits.classified,
            seconds_starting=since - self._planned if since else 0.0,
            seconds_classifying=seconds,
            tiles_per_second=commits.classified / seconds if seconds else None,
        )

    def _settled(self) -> Counter[Status]:
        return Counter(slide.found.status for slide in self._plan.settled)

    def _write_manifest(
        self,
        state: RunState,
        *,
        summary: RunSummary | None = None,
        exit_code: ExitCode | None = None,
        error: str | None = None,
    ) -> None:
        commits, settled = self._driver.commits, self._settled()
        seconds = {"planning": self._planned - self._began}
        if summary is not None:
            seconds["starting"] = summary.seconds_starting
            seconds["classifying"] = summary.seconds_classifying
        spec = self._bundle.spec.to_json()
        del spec["provenance"]  # long, and the digest stands for it
        manifest = RunManifest(
            run_id=self._name.run_id,
            state=state,
            started_at=_iso(self._began),
            settings=asdict(self._settings),
            bundle={"path": str(self._bundle.path), "digest": self._bundle.digest, **spec},
            precision=str(self._precision),
            backend=str(self._backend),
            executor=self._executor.name,
            versions=self._driver.versions,
            host={"cpus": usable_cpus(), "platform": platform.platform()},
            slides={
                "planned": self._plan.slide_count,
                **{f"settled_{status}": settled[status] for status in Status},
                **{str(status): commits.by_status[status] for status in Status},
            },
            cells={
                "expected": self._plan.tiles,
                "classified": commits.classified,
                "unreadable": commits.unreadable,
            },
            ignored=[ignored._asdict() for ignored in self._plan.ignored],
            replicas=[asdict(info) for info in self._driver.replicas_seen],
            replicas_lost=self._driver.replicas_lost,
            seconds=seconds,
            tiles_per_second=summary.tiles_per_second if summary else None,
            finished_at=None if state is RunState.RUNNING else _iso(self._clock.now()),
            exit_code=exit_code,
            error=printable(error) if error else None,
        )
        write_manifest(self._results, self._name, manifest)


def _work(plan: Plan, spec: BundleSpec, hardware: Hardware) -> Work:
    return Work(
        tiles=plan.tiles,
        # Counting takes a third of a second: not for a run that finds all done.
        gflop=spec.tile_gflop() if plan.tiles else 0.0,
        device_type=hardware.device_type,
        processors=hardware.processors,
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
