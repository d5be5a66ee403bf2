"""Delivers a notice, or gives up in time: a run's end waits for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cvm_batch.notices.message import Message
from cvm_batch.pseudonyms import Pseudonyms


class UndeliveredError(Exception):
    """A channel's refusal. The text quotes nothing that was sent, nor any answer's words."""

    def __init__(self, why: str, *, passing: bool) -> None:
        super().__init__(why)
        self.passing = passing
        """Whether another try may help."""


class Channel(Protocol):
    """A way to somebody."""

    kind: str
    to: str
    """Who gets it, as logs may show it: without a secret, without a person's name."""

    def deliver(self, message: Message, timeout: float) -> None:
        """Raises UndeliveredError or OSError; waits ``timeout`` seconds for each answer."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds."""

    answer: float = 10.0
    pauses: tuple[float, ...] = (1.0, 4.0)
    """Before each further try."""
    total: float = 40.0
    """After which all that is not delivered is given up, whatever it does."""


@dataclass(kw_only=True)
class Outcome:
    """What became of a notice, as the run's manifest tells it."""

    kind: str
    to: str
    attempts: int = 0
    delivered: bool = False
    error: str | None = None


class Notices:
    """The notices of one run's end. ``tell`` hears of those that fail, a line each."""

    def __init__(
        self,
        channels: Sequence[Channel] = (),
        pseudonyms: Pseudonyms | None = None,
        tell: Callable[[str], None] = lambda line: None,
        patience: Patience | None = None,
    ) -> None:
        self.channels = channels
        self.pseudonyms = pseudonyms
        self._tell = tell
        self._patience = patience or Patience()

    def send(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Deliver by all channels at once. Raises nothing; never takes much over the patience."""
        message = Message(summary)
        outcomes = [Outcome(kind=each.kind, to=each.to) for each in self.channels]
        # Daemons, since one that hangs in a name server's answer must not hold up the end.
        threads = [
            threading.Thread(target=self._deliver, args=(*pair, message), daemon=True)
            for pair in zip(self.channels, outcomes, strict=True)
        ]
        for thread in threads:
            thread.start()
        self._wait(threads)
        told = [asdict(outcome) for outcome in outcomes]
        for outcome, thread in zip(told, threads, strict=True):
            if thread.is_alive():
                outcome["error"] = outcome["error"] or "no answer in time"
            if not outcome["delivered"]:
                self._tell(
                    f"The {outcome['kind']} notice to {outcome['to']} was not delivered: "
                    f"{outcome['error']}. The run's results are not touched by that."
                )
        return told

    def _wait(self, threads: Sequence[threading.Thread]) -> None:
        until = time.monotonic() + self._patience.total
        try:
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
        except KeyboardInterrupt:  # whoever does not want to wait for notices need not
            return

    def _deliver(self, channel: Channel, outcome: Outcome, message: Message) -> None:
        for pause in (*self._patience.pauses, None):
            outcome.attempts += 1
            try:
                channel.deliver(message, self._patience.answer)
            except UndeliveredError as error:
                outcome.error = str(error)
                if not error.passing:
                    return
            except OSError as error:
                outcome.error = error.strerror or type(error).__name__
            except Exception as error:  # its text may quote what was sent
                outcome.error = type(error).__name__
                return
            else:
                outcome.delivered, outcome.error = True, None
                return
            if pause is not None:
                time.sleep(pause)
