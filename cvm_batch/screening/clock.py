"""The run's clock: seconds since the epoch that never run backwards."""

from __future__ import annotations

import time


class Clock:
    """Wall time at its making, plus monotonic time since: somebody may set the wall clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()
