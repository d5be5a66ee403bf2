"""One replica, as the dispatcher knows it: what it holds, how fast it is, when it last lived."""

from __future__ import annotations

from dataclasses import dataclass, field

from cvm_batch.screening.work import Lease

#: Later leases that were answered first, until one counts as left behind. Two that arrive
#: together may change places; a third is only handed out when one of them is answered.
_OVERTAKEN = 2


@dataclass
class _Held:
    lease: Lease
    overtaken: int = 0
    """Leases handed out later that were answered before this one."""
    overtaken_at: float = 0.0
    """When the last of them was."""


@dataclass
class Serving:
    """Everything about one replica but whether it is believed (`Trust`)."""

    last_sign: float = 0.0
    """When it last got on with its work."""
    held: dict[int, _Held] = field(default_factory=dict)
    """Leases by number, in the order in which they were handed out."""
    leased_tiles: int = 0
    tiles_per_second: float | None = None
    counted: int = 0
    """Tiles that came to something since its speed was last measured."""
    settled: bool = False
    """Measured more than once: the first lease opens archives and warms up."""
    alone: bool = False
    """A suspect runs on it, and nothing else may."""
    retired: bool = False
    """It is being ended: it gets no further lease."""
    _counting_since: float = 0.0
    """When ``counted`` began to count; the replica has been busy ever since."""
    _tiles_seen: int = 0
    """As it last reported, since it began to serve."""
    _signs_seen: int = 0
    _tiles_answered: int = 0
    """In leases that it has answered."""

    def take(self, lease: Lease, now: float) -> None:
        if not self.held:
            self._counting_since, self.counted, self.last_sign = now, 0, now
        self.held[lease.number] = _Held(lease)
        self.leased_tiles += lease.tiles

    def answer(self, lease: Lease, counted: int, now: float, window: float) -> None:
        """``counted``: tiles that came to something. ``window``: seconds that a measure of
        speed takes at least, since two answers may arrive in one moment."""
        del self.held[lease.number]
        for number, older in self.held.items():
            if number < lease.number:
                older.overtaken += 1
                older.overtaken_at = now
        self.leased_tiles -= lease.tiles
        self.alone = False
        self.last_sign = now
        self._tiles_answered += lease.tiles
        self._learn_speed(counted, now, window)

    def tell(self, tiles: int, signs: int, now: float) -> None:
        """``tiles`` done with and ``signs`` of other work, since it began to serve."""
        if tiles > self._tiles_seen or signs > self._signs_seen:
            self.last_sign = now
        self._tiles_seen = max(self._tiles_seen, tiles)
        self._signs_seen = max(self._signs_seen, signs)

    def excuse(self, seconds: float) -> None:
        """Nobody has listened for so long: what was not heard is not silence."""
        self.last_sign += seconds
        for held in self.held.values():
            held.overtaken_at += seconds

    def hangs(self, now: float, patience: float) -> bool:
        """True where it holds leases and shows no sign of work, or has left one of them behind.

        Signs are the replica's: a lease that never ends would hide behind its neighbours.
        """
        if not self.held or self.retired:
            return False
        return now - self.last_sign > patience or any(
            held.overtaken >= _OVERTAKEN and now - held.overtaken_at > patience
            for held in self.held.values()
        )

    @property
    def tiles_running(self) -> int:
        """Of the leases it holds, as far as it has told."""
        return max(0, min(self._tiles_seen - self._tiles_answered, self.leased_tiles))

    def _learn_speed(self, tiles: int, now: float, window: float) -> None:
        self.counted += tiles
        elapsed = now - self._counting_since
        if not self.counted:
            self._counting_since = now  # failures are neither fast nor slow
        elif elapsed >= window:
            self.settled = self.tiles_per_second is not None
            self.tiles_per_second = self.counted / elapsed
            self._counting_since, self.counted = now, 0


class Speeds:
    """The mean speed of replicas, without a look at each of them."""

    def __init__(self) -> None:
        self._speeds: dict[int, float] = {}
        self._sum = 0.0

    def note(self, replica: int, tiles_per_second: float) -> None:
        self.drop(replica)
        self._speeds[replica] = tiles_per_second
        self._sum += tiles_per_second

    def drop(self, replica: int) -> None:
        self._sum -= self._speeds.pop(replica, 0.0)

    @property
    def mean(self) -> float | None:
        """Tiles per second of one replica; None where none has been measured."""
        return self._sum / len(self._speeds) if self._speeds else None
