"""The driver's loop: hands out leases, takes what comes back, commits what has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cvm_batch.errors import RunAbortedError
from cvm_batch.model.bundle import Bundle
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.screening.clock import Clock
from cvm_batch.screening.commits import Commits
from cvm_batch.screening.dispatcher import Dispatcher, LeasePolicy
from cvm_batch.screening.executor import Event, Executor, LeaseDone, ReplicaLost, ReplicaReady
from cvm_batch.screening.plan import Plan
from cvm_batch.screening.replica import ReplicaSpec, versions
from cvm_batch.screening.rows import RunContext, slide_row
from cvm_batch.screening.summary import Progress
from cvm_batch.screening.work import ReplicaInfo, SlideSource

#: Seconds without a single replica until the run is given up.
_START_TIMEOUT = 600.0
_TICK_SECONDS = 0.5


class Driver:
    """Drives one planned run to its end."""

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        spec: ReplicaSpec,
        executor: Executor,
        results: ResultsFolder,
        clock: Clock,
    ) -> None:
        self._plan = plan
        self._bundle = bundle
        self._spec = spec
        self._executor = executor
        self._clock = clock
        self.commits = Commits(results, spec.run, clock.now())
        self.replicas_seen: list[ReplicaInfo] = []
        self.replicas_lost: list[str] = []
        self.serving_since: float | None = None
        """When the first replica was ready."""
        self._serving: set[int] = set()
        self._last_event = clock.now()
        self._dispatcher: Dispatcher | None = None
        self._stopped = False

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the replicas, once there is one; until then of this process."""
        return self.replicas_seen[0].versions if self.replicas_seen else versions()

    def drive(self, report: Callable[[Progress], None], should_stop: Callable[[], bool]) -> None:
        """Classify the plan's slides; see `cvm_batch.screening.run.run` for the arguments.

        Raises CvmBatchError where the run cannot go on.
        """
        now = self._clock.now()
        for slide in self._plan.failed:
            self.commits.add(slide_row(self._context(), slide, None, now), now)
        if not self._plan.slides:
            return
        self._executor.start(self._spec)
        report(self._progress())
        while not self._finished():
            for event in self._executor.wait(_TICK_SECONDS):
                self._handle(event)
            now = self._clock.now()
            self._stopped = self._stopped or should_stop()
            if not self._stopped:
                self._hand_out(now)
            elif self._dispatcher is None or self._dispatcher.idle:
                return
            self.commits.flush_if_due(now)
            report(self._progress())
            self._check_that_somebody_serves(now)

    def _finished(self) -> bool:
        return self._dispatcher is not None and self._dispatcher.done

    def _handle(self, event: Event) -> None:
        now = self._last_event = self._clock.now()
        ended: list[int] = []
        match event:
            case ReplicaReady(replica, info):
                self._serving.add(replica)
                self.replicas_seen.append(info)
                self.serving_since = self.serving_since or now
                self._dispatcher = self._dispatcher or self._new_dispatcher(info)
                self._dispatcher.add_replica(replica)
            case LeaseDone(_, lease, outcomes):
                assert self._dispatcher is not None
                ended = self._dispatcher.lease_done(lease, outcomes, now)
            case ReplicaLost(replica, detail, preempted):
                self.replicas_lost.append(detail)
                if self._dispatcher and replica in self._serving:
                    self._serving.remove(replica)
                    ended = self._dispatcher.replica_lost(replica, detail, now, preempted=preempted)
        for number in ended:
            self._end_slide(number, now)

    def _new_dispatcher(self, info: ReplicaInfo) -> Dispatcher:
        """The first replica says how large a batch is; leases are cut to fit."""
        sources, tiles = [], []
        for number, slide in enumerate(self._plan.slides):
            assert slide.info is not None
            sources.append(
                SlideSource(
                    number,
                    slide.slide_id,
                    slide.address,
                    slide.info.identity,
                    slide.info.chunk_tiles,
                )
            )
            tiles.append(slide.info.tiles)
        return Dispatcher(sources, tiles, LeasePolicy(batch_size=info.lanes * info.batch_size))

    def _hand_out(self, now: float) -> None:
        if self._dispatcher is None:
            return
        # A lease for each before a second for any: none waits while another hoards.
        handed_out = True
        while handed_out:
            handed_out = False
            for replica in self._serving:
                lease = self._dispatcher.next_lease(replica, now)
                if lease is not None:
                    self._executor.submit(replica, lease)
                    handed_out = True

    def _end_slide(self, number: int, now: float) -> None:
        assert self._dispatcher is not None
        account = self._dispatcher.ledger.accounts[number]
        row = slide_row(self._context(), self._plan.slides[number], account, now)
        self.commits.add(row, now)
        account.counted.clear()  # the row has it all: memory stays flat over a long night

    def _check_that_somebody_serves(self, now: float) -> None:
        if not self._serving and now - self._last_event > _START_TIMEOUT:
            raise RunAbortedError(
                f"No replica has come up within {_START_TIMEOUT:.0f} s. Check that the "
                "cluster has free GPUs or CPUs, then submit again."
            )

    def _context(self) -> RunContext:
        return RunContext(
            run_id=self._spec.run.run_id,
            bundle=self._bundle,
            precision=str(self._spec.precision),
            backend=self.replicas_seen[0].backend if self.replicas_seen else None,
            versions=self.versions,
        )

    def _progress(self) -> Progress:
        return Progress(
            tiles_done=self._dispatcher.ledger.tiles_accounted if self._dispatcher else 0,
            tiles=self._plan.tiles,
            slides_done=self.commits.by_status.total(),
            slides=self._plan.slide_count,
            not_complete=len(self.commits.not_complete),
            replicas=len(self._serving),
        )
