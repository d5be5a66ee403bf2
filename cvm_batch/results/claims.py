"""Who holds a results folder: numbered claims, of which the highest counts.

    lock/<nnnnnn>.json   a claim: whose, and whether it was let go
    lock/<nnnnnn>.beat   another text every few seconds, while the claim's holder lives

A claim is made by putting the next number, which only one can. It ends by being let go, or when
the next one is made, by somebody who knows that its holder's process is gone or has watched its
beat stand still. That may be wrong: a holder that was only frozen wakes up later. So whoever
comes next seals the runs of those before, and holding the folder is never what makes a commit
safe (`cvm_batch.results.sealing`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from cvm_batch.errors import CommitError, ResultsError, ResultsInUseError, TakenOverError
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.processes import Process

#: Of which older ones are removed: whoever is about to put a number that was removed finds
#: higher ones afterwards.
_KEPT = 16


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds."""

    beat: float = 3.0
    """From one beat to the next."""
    silence: float = 15.0
    """Without a beat, after which a holder on another host counts as dead."""
    glance: float = 4.5
    """For which `Claims.holder` waits for a beat."""
    look: float = 0.5
    """From one look at another's beat to the next."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    number: int
    run_id: str
    since: str
    """ISO 8601, UTC; by its host's clock, so for people to read."""
    process: Process
    released: bool = False
    """Its run has ended, or was sealed: nothing more can come of it."""

    @classmethod
    def from_json(cls, data: bytes) -> Claim:
        """Raises ValueError, KeyError or TypeError."""
        value = json.loads(data)
        return cls(**{**value, "process": Process(**value["process"])})

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=2).encode() + b"\n"

    @property
    def name(self) -> str:
        return f"lock/{self.number:06d}.json"

    @property
    def beat_name(self) -> str:
        return f"lock/{self.number:06d}.beat"


class Claims:
    """All claims on one results folder."""

    def __init__(
        self,
        results: ResultsFolder,
        timing: Timing | None = None,
        *,
        process: Process | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``process``: who claims, this process unless told otherwise."""
        self._results = results
        self.timing = timing or Timing()
        self._process = process
        self._sleep = sleep

    def take(self, run_id: str) -> Hold:
        """Claim the folder for a run.

        Raises ResultsInUseError where another run holds it, after as long as it takes to see
        that, ResultsError where that cannot be told, and CommitError.
        """
        newest = self.newest()
        if newest is not None:
            self._outwait(newest)
        mine = Claim(
            number=newest.number + 1 if newest else 1,
            run_id=run_id,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            process=self._process or Process.this(),
        )
        if not self._results.put_new(mine.name, mine.to_json()):
            raise self._in_use(self.newest() or mine)
        # Where the number had been removed already, the claim is an old one.
        newest = self.newest()
        if newest is not None and newest.number > mine.number:
            self.mark_released(mine)
            raise self._in_use(newest)
        return Hold(self, self._results, mine)

    def newest(self) -> Claim | None:
        """The highest claim. Raises ResultsError."""
        while numbers := self.numbers():
            with suppress(FileNotFoundError):  # removed meanwhile: there are higher ones
                return self.read(numbers[-1])
        return None

    def numbers(self) -> list[int]:
        names = (name.rpartition("/")[2] for name in self._results.names("lock"))
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def read(self, number: int) -> Claim:
        """Raises FileNotFoundError, or ResultsError where it is damaged."""
        name = f"lock/{number:06d}.json"
        try:
            return Claim.from_json(self._results.read(name))
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{name} in {self._results} does not say who holds the folder: {error!r}. Make "
                "sure that no run writes there, then remove it and submit again."
            ) from error

    def unreleased_before(self, claim: Claim) -> list[Claim]:
        """Claims whose runs may still think that they hold the folder."""
        found = []
        for number in self.numbers():
            with suppress(FileNotFoundError):
                earlier = self.read(number)
                if earlier.number < claim.number and not earlier.released:
                    found.append(earlier)
        return found

    def mark_released(self, claim: Claim) -> None:
        """Raises CommitError."""
        self._results.replace(claim.name, replace(claim, released=True).to_json())

    def prune(self) -> None:
        """Remove claims that are old. What led to them must have been sealed."""
        old = self.numbers()[:-_KEPT]
        self._results.remove([f"lock/{n:06d}.{kind}" for n in old for kind in ("json", "beat")])

    def holder(self) -> Claim | None:
        """Who holds the folder, as far as can be told within some seconds.

        On this host the process is looked up, which takes no time; of another host's, or one
        that is hidden, a beat is waited for. Raises ResultsError.
        """
        while True:
            newest = self.newest()
            if newest is None or newest.released or newest.process.is_gone():
                return None
            with suppress(ResultsInUseError):  # another came meanwhile: look at that one
                lives = newest.process.lives() or self._beats(newest, self.timing.glance)
                return newest if lives else None

    def _outwait(self, claim: Claim) -> None:
        """Return once it is the newcomer's turn. Raises ResultsInUseError."""
        if not (claim.released or claim.process.is_gone()) and self._beats(
            claim, self.timing.silence
        ):
            raise self._in_use(claim)

    def _beats(self, claim: Claim, seconds: float) -> bool:
        """Whether the holder lives; False once it let go, or was still for so many seconds.

        They are those of this process's own watching: what a clock says elsewhere is no
        matter, and time that this process itself was frozen does not count.
        """
        first, watched, before = self._beat(claim), 0.0, time.monotonic()
        while watched < seconds:
            self._sleep(self.timing.look)
            beat = self._beat(claim)
            if beat is not None and beat != first:  # it goes when the claim is let go
                return True
            newest = self.newest()
            if newest is None or newest.released or newest.process.is_gone():
                return False
            if newest.number > claim.number:
                raise self._in_use(newest)
            now = time.monotonic()
            watched += min(now - before, 2 * self.timing.look)
            before = now
        return False

    def _beat(self, claim: Claim) -> bytes | None:
        try:
            return self._results.read(claim.beat_name)
        except FileNotFoundError:
            return None

    def _in_use(self, claim: Claim) -> ResultsInUseError:
        of = claim.process
        return ResultsInUseError(
            f"Another run is writing to {self._results}: {claim.run_id}, process {of.pid} on "
            f"{of.host}, since {claim.since}. Wait for its end, or choose another folder with "
            "--out."
        )


class Hold:
    """The folder, claimed for one run."""

    def __init__(self, claims: Claims, results: ResultsFolder, claim: Claim) -> None:
        self._claims = claims
        self._results = results
        self.claim = claim
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="results-beat", daemon=True)
        self.successor: Claim | None = None
        """Who took over."""
        self._beats = 0

    def start(self) -> None:
        """Beat in a thread of its own, until `release`."""
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """Say that this holder lives, and look whether another took over."""
        self._beats += 1
        # What fails now is tried again with the next beat; in the end, others take over.
        with suppress(OSError):
            self._results.replace_unflushed(self.claim.beat_name, f"{self._beats}\n".encode())
        self.look()

    def look(self) -> None:
        with suppress(ResultsError):
            if self._claims.numbers()[-1:] > [self.claim.number]:
                self.successor = self._claims.newest()

    def check(self, *, now: bool = False) -> None:
        """Raise TakenOverError if another run took the folder over.

        As of the last beat, or of ``now``, which asks the disk or the server.
        """
        if now:
            self.look()
        if self.successor is None:
            return
        by = self.successor
        raise TakenOverError(
            f"Another run took over {self._results}: {by.run_id}, process {by.process.pid} on "
            f"{by.process.host}. This one had not been heard of for "
            f"{self._claims.timing.silence:.0f} s, as when its machine is frozen or cut off. What "
            "it had committed stays, and the other run goes on from there."
        )

    def release(self) -> None:
        """Let go at once, so that nobody need wait."""
        self._ended.set()
        if self._thread.is_alive():  # unless a request hangs: then its beat is a leftover
            self._thread.join(timeout=1)
        if self.successor is None:
            # Whoever comes next finds out, where this fails.
            with suppress(CommitError):
                self._claims.mark_released(self.claim)
        self._results.remove([self.claim.beat_name])

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._claims.timing.beat):
            self.beat()
