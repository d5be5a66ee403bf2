"""The driver's loop: hands out leases, takes what comes back, commits what has ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cvm_batch.errors import RunAbortedError
from cvm_batch.logs import log_event
from cvm_batch.model.bundle import Bundle
from cvm_batch.screening.clock import Clock
from cvm_batch.screening.commits import Commits
from cvm_batch.screening.dispatcher import Dispatcher
from cvm_batch.screening.executor import (
    Event,
    Executor,
    LeaseDone,
    ReplicaLost,
    ReplicaProgress,
    ReplicaReady,
)
from cvm_batch.screening.plan import Plan
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.rows import RunContext, slide_row
from cvm_batch.screening.summary import Progress
from cvm_batch.screening.versions import versions
from cvm_batch.screening.wishes import ListAnew, Prioritise, TakeFurther, Wish
from cvm_batch.screening.work import ReplicaInfo, ReplicaSpec, SlideSource

_LOG = logging.getLogger(__name__)
#: Seconds without a single replica until the run is given up.
_START_TIMEOUT = 600.0
_TICK_SECONDS = 0.5
#: Between looks at every replica, which after each answer would cost more than the answers.
_LOOK_SECONDS = 0.5
#: A turn of the loop that takes longer has not heard what replicas had to say.
_PAUSE_SECONDS = 10.0


class Driver:
    """Drives one planned run to its end."""

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        spec: ReplicaSpec,
        executor: Executor,
        commits: Commits,
        clock: Clock,
        *,
        until: float | None = None,
        patience: float = LeasePolicy.patience_seconds,
    ) -> None:
        """``until``: clock time by which all replicas are to be idle. ``patience``: seconds
        that a replica with work may show no sign of it."""
        self.plan = plan
        """Grows while the run goes on, where further slides are wished for."""
        self._bundle = bundle
        self._spec = spec
        self._executor = executor
        self._clock = clock
        self.commits = commits
        self._until = until
        self._patience = patience
        self.replicas_seen: list[ReplicaInfo] = []
        self.replicas_lost: list[str] = []
        self.serving_since: float | None = None
        """When the first replica was ready."""
        self.replica_seconds = 0.0
        """Of all replicas together, while they served."""
        self._serving: set[int] = set()
        self._last_event = clock.now()
        self.dispatcher: Dispatcher | None = None
        self._stopped = False
        self._asked_early: dict[str, int] = {}
        """Priorities of slides that are known, and still too fresh to be taken."""
        self._listened_at = clock.now()
        self._looked_at = clock.now()

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the replicas, once there is one; until then of this process."""
        return self.replicas_seen[0].versions if self.replicas_seen else versions()

    def drive(
        self,
        report: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        wishes: Callable[[], Sequence[Wish]] = tuple,
    ) -> None:
        """Classify the plan's slides; see `cvm_batch.screening.run.run` for the arguments.

        ``wishes``: what has been asked of the run since the last call. Raises CvmBatchError
        where the run cannot go on.
        """
        self._end_unopened(self.plan)
        if not self.plan.slides:
            return
        self._executor.start(self._spec)
        report(self._progress())
        while not self._finished():
            for event in self._executor.wait(_TICK_SECONDS):
                self._handle(event)
            now = self._clock.now()
            self._excuse_silence(now)
            for wish in wishes():
                self.grant(wish)
            if not self._stopped and (should_stop() or self._too_late(now)):
                self._stopped = True
                self.commits.hurry()
            if not self._stopped:
                self._hand_out(now)
            if self._nothing_runs(now):
                return
            self.commits.flush_if_due(now)
            if now - self._looked_at >= _LOOK_SECONDS:
                self._looked_at = now
                self._end_what_hangs(now)
            report(self._progress())
            self._check_that_somebody_serves(now)

    def grant(self, wish: Wish) -> None:
        """Do what is wished, from now on."""
        match wish:
            case Prioritise() | ListAnew():
                self._prioritise(wish)
            case TakeFurther(further):
                first = len(self.plan.slides)
                if self._asked_early:
                    further = further.with_priorities(self._asked_early.get)
                self.plan = self.plan.joined(further)
                self._end_unopened(further)
                if self.dispatcher is not None:
                    self._add_slides(self.dispatcher, first)

    def _prioritise(self, wish: Prioritise | ListAnew) -> None:
        for fresh in self.plan.fresh:
            if (priority := wish.of(fresh.slide_id)) is not None:
                self._asked_early[fresh.slide_id] = priority
        slides = list(self.plan.slides)
        for number, slide in enumerate(slides):
            priority = wish.of(slide.slide_id)
            if priority is not None and priority != slide.priority:
                slides[number] = replace(slide, priority=priority)
                if self.dispatcher is not None:
                    self.dispatcher.set_priority(number, priority)
        self.plan = replace(self.plan, slides=tuple(slides))

    def _end_unopened(self, plan: Plan) -> None:
        now = self._clock.now()
        for slide in plan.failed:
            self.commits.add(slide_row(self._context(), slide, None, now), now)

    def _finished(self) -> bool:
        return self.dispatcher is not None and self.dispatcher.done

    def _too_late(self, now: float) -> bool:
        return self._until is not None and now >= self._until

    def _nothing_runs(self, now: float) -> bool:
        """True where a stopped run has run out, or nothing that is left fits before its end."""
        if self.dispatcher is None:
            return self._stopped
        if self._stopped:
            return self.dispatcher.idle
        if self._until is None or not self.dispatcher.exhausted:
            return False
        # What was set aside is looked at once more: nothing runs now that it would wait for.
        self.dispatcher.reconsider()
        self._hand_out(now)
        return self.dispatcher.exhausted

    def _excuse_silence(self, now: float) -> None:
        """After a turn in which this process was frozen, or waited for the results' store."""
        silent, self._listened_at = now - self._listened_at, now
        if self.dispatcher is not None and silent > _PAUSE_SECONDS:
            self.dispatcher.excuse(silent)

    def _end_what_hangs(self, now: float) -> None:
        if self.dispatcher is None:
            return
        for replica in self.dispatcher.overdue(now):
            detail = f"no sign of work, or none on one of its leases, in {self._patience:.0f} s"
            self.dispatcher.retire(replica)  # at once: the executor may tell its loss later
            self._executor.end(replica, detail)

    def _handle(self, event: Event) -> None:
        now = self._clock.now()
        self.replica_seconds += len(self._serving) * (now - self._last_event)
        self._last_event = now
        ended: list[int] = []
        match event:
            case ReplicaReady(replica, info):
                self._serving.add(replica)
                self.replicas_seen.append(info)
                self.serving_since = self.serving_since or now
                self._log("replica ready", replica=replica, device=info.device)
                self.dispatcher = self.dispatcher or self._new_dispatcher(info)
                self.dispatcher.add_replica(replica, now, info.node)
            case LeaseDone(_, lease, outcomes):
                assert self.dispatcher is not None
                ended = self.dispatcher.lease_done(lease, outcomes, now)
                for replica, seconds in self.dispatcher.newly_suspended():
                    self._log("replica failed all it read", replica=replica, rests=seconds)
            case ReplicaProgress(replica, tiles, signs):
                assert self.dispatcher is not None
                self.dispatcher.note_progress(replica, tiles, now, signs)
            case ReplicaLost(replica, detail, loss):
                self.replicas_lost.append(detail)
                self._log("replica lost", replica=replica, how=loss, detail=detail)
                if self.dispatcher and replica in self._serving:
                    self._serving.remove(replica)
                    ended = self.dispatcher.replica_lost(replica, loss, detail, now)
        for number in ended:
            self._end_slide(number, now)

    def _new_dispatcher(self, info: ReplicaInfo) -> Dispatcher:
        """The first replica says how large a batch is; leases are cut to fit."""
        policy = LeasePolicy(
            batch_size=info.lanes * info.batch_size, patience_seconds=self._patience
        )
        made = Dispatcher(policy)
        made.until = self._until
        self._add_slides(made, 0)
        return made

    def _add_slides(self, dispatcher: Dispatcher, first: int) -> None:
        for number, slide in enumerate(self.plan.slides[first:], first):
            assert slide.info is not None
            source = SlideSource(
                number,
                slide.slide_id,
                slide.address,
                slide.info.identity,
                slide.info.chunk_tiles,
            )
            dispatcher.add_slide(source, slide.info.tiles, slide.priority)

    def _hand_out(self, now: float) -> None:
        if self.dispatcher is None:
            return
        # A lease for each before a second for any: none waits while another hoards.
        handed_out = True
        while handed_out:
            handed_out = False
            for replica in self.dispatcher.hungry():
                lease = self.dispatcher.next_lease(replica, now)
                if lease is not None:
                    self._executor.submit(replica, lease)
                    handed_out = True

    def _end_slide(self, number: int, now: float) -> None:
        assert self.dispatcher is not None
        account = self.dispatcher.ledger.accounts[number]
        row = slide_row(self._context(), self.plan.slides[number], account, now)
        self.commits.add(row, now)
        account.counted.clear()  # the row has it all: memory stays flat over a long night

    def _log(self, message: str, **event: Any) -> None:
        log_event(_LOG, message, run_id=self._spec.run.run_id, **event)

    def _check_that_somebody_serves(self, now: float) -> None:
        if not self._serving and now - self._last_event > _START_TIMEOUT:
            why = [detail.removesuffix(".") for detail in self.replicas_lost[-1:]]
            lost = "".join(f" The last one lost: {detail}." for detail in why)
            raise RunAbortedError(
                f"No replica has come up within {_START_TIMEOUT:.0f} s.{lost} Check that the "
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
            tiles_done=self.dispatcher.tiles_done if self.dispatcher else 0,
            tiles=self.plan.tiles,
            slides_done=self.commits.by_status.total(),
            slides=self.plan.slide_count,
            not_complete=len(self.commits.not_complete),
            replicas=len(self._serving),
        )
