"""Many parts of one file, in few reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cvm_batch.archives.limits import MIB
from cvm_batch.archives.places.place import OpenFile

#: What is read at once, where one part alone is not larger. Every reading thread holds so much.
_MOST_BYTES = MIB
#: Bytes between two parts that are read along, rather than to begin another read.
_GAP_BYTES = MIB // 16


def read_spans(file: OpenFile, spans: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
    """The bytes [start, stop) of each span, in turn; fewer only where the file ends.

    Spans that lie together, in their order, are read at once.
    """
    first = 0
    while first < len(spans):
        last, reached = _run(spans, first)
        at = spans[first][0]
        data = memoryview(file.read_at(at, reached - at))
        for start, stop in spans[first:last]:
            yield data[start - at : stop - at]
        first = last


def _run(spans: Sequence[tuple[int, int]], first: int) -> tuple[int, int]:
    """Up to which span, and to which byte, one read goes that begins with span ``first``."""
    at, reached = spans[first]
    before = at
    for number in range(first + 1, len(spans)):
        start, stop = spans[number]
        in_order = before <= start <= reached + _GAP_BYTES
        if not in_order or max(reached, stop) - at > _MOST_BYTES:
            return number, reached
        before, reached = start, max(reached, stop)
    return len(spans), reached
