"""The ledger: which tiles of which slide are accounted for. Pure: no clock, no threads.

Work is done at least once, results count exactly once: a part has one open attempt at a
time, an answer to any other is ignored, and a slide ends when every tile is accounted
for, or at its first failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cvm_batch.screening.work import Failure, Part, PartOutcome


@dataclass
class SlideAccount:
    """One slide's open attempts and counted parts."""

    tiles: int
    """Expected of the whole slide."""
    open: dict[int, Part] = field(default_factory=dict)
    """The newest attempt at each part under way or waiting, by its start."""
    counted: list[PartOutcome] = field(default_factory=list)
    accounted: int = 0
    """Tiles in ``counted``."""
    attempts: int = 1
    failure: Failure | None = None
    first_leased: float | None = None
    """Clock time of the first lease with a part of this slide."""

    @property
    def finished(self) -> bool:
        return self.failure is not None or self.accounted == self.tiles


class Ledger:
    """Accounts of all slides of a run, by their number."""

    def __init__(self) -> None:
        self.accounts: list[SlideAccount] = []
        self.tiles_accounted = 0

    def add(self, tiles: int) -> None:
        """Open the account of the next slide."""
        self.accounts.append(SlideAccount(tiles))

    def open(self, part: Part) -> None:
        """Note that ``part`` is under way; it supersedes an earlier attempt at it."""
        account = self.accounts[part.slide.number]
        account.open[part.start] = part
        account.attempts = max(account.attempts, part.attempt + 1)

    def is_open(self, part: Part) -> bool:
        """False for superseded attempts and for slides that have ended."""
        account = self.accounts[part.slide.number]
        return not account.finished and account.open.get(part.start) == part

    def count(self, outcome: PartOutcome) -> bool:
        """Take a whole part's outcome; True where that ended the slide.

        Only an open part may be counted.
        """
        account = self.accounts[outcome.part.slide.number]
        assert outcome.failure is None
        del account.open[outcome.part.start]
        account.counted.append(outcome)
        account.accounted += len(outcome.part)
        self.tiles_accounted += len(outcome.part)
        return account.finished

    def fail(self, number: int, failure: Failure) -> None:
        """End the slide; answers to its open parts will be ignored."""
        account = self.accounts[number]
        account.failure = failure
        account.open.clear()
        self.tiles_accounted += account.tiles - account.accounted
