"""The last few blocks that were decoded: a microscope frame, a chunk of an archive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

Block = TypeVar("Block")


class Kept(Generic[Block]):
    """Cells of one block follow each other, so that each block is decoded about once.

    Threads that ask for the same block wait for the one that decodes it.
    """

    def __init__(self, most: int) -> None:
        """``most`` blocks are kept."""
        self._most = most
        self._lock = Lock()
        self._blocks: OrderedDict[Hashable, Future[Block]] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], Block]) -> Block:
        """The block of that key. Raises what ``decode`` raises, which is not kept."""
        with self._lock:
            block = self._blocks.get(key)
            if mine := block is None:
                block = self._blocks[key] = Future()
            self._blocks.move_to_end(key)
            while len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
        if mine:
            try:
                block.set_result(decode())
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(key, None)
                block.set_exception(error)
        return block.result()
