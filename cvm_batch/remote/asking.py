"""Asking a server, and again where the cause may pass."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec.asyn import sync  # type: ignore[import-untyped]

from cvm_batch import signs
from cvm_batch.remote.errors import may_pass

#: Of bytes a second; a connection that is slower for long is as good as broken.
_SLOWEST = 32 * 1024

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is given. With these figures one that hangs costs about 20 s."""

    retries: int = 3
    first_wait_s: float = 0.5
    """Before the first retry; thrice as long before each further one."""
    answer_s: float = 10
    """To connect, and then for every further byte."""
    last_retry_s: float = 12
    """Counted from the first try: no retry begins later."""

    def may_retry(self, tries: int, since: float) -> bool:
        return tries <= self.retries and time.monotonic() - since < self.last_retry_s

    def wait(self, tries: int) -> None:
        # By chance a little more or less, so that those who fell together do not come
        # back together.
        time.sleep(self.first_wait_s * 3 ** (tries - 1) * random.uniform(0.5, 1.5))  # noqa: S311

    def limit_s(self, size: int) -> float:
        """For one request in all, as a server may go on for ever byte by byte."""
        return 3 * self.answer_s + size / _SLOWEST


def ask(
    fs: Any,
    question: Callable[..., Awaitable[Answer]],
    *details: Any,
    patience: Patience,
    refused: Callable[[Exception, int], Exception],
    size: int = 0,
) -> Answer:
    """What the server of ``fs`` answers; never None.

    ``refused`` makes an error of the client's own and of the number of tries, once it is no
    use to try again. ``size``: bytes that go over the line.
    """
    since, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            answer: Answer | None = sync(
                fs.loop, question, *details, timeout=patience.limit_s(size)
            )
            if answer is not None:  # it is only where the request was cancelled
                return answer
        except Exception as error:  # of any of the clients, which need not be installed
            if not (may_pass(error) and patience.may_retry(tries, since)):
                # Not chained: clients quote addresses, with the passwords of proxies.
                raise refused(error, tries) from None
        signs.note()  # a store that is away is waited for here, and for so long
        patience.wait(tries)
