"""Many names, held compactly: a slide of 200,000 crops has 200,000 of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_PIECE_NAMES = 8192


class Names:
    """Sorted, distinct names. A position is a name's place among them.

    Names are text as the operating system gives it: bytes that are no UTF-8 are
    surrogates. They are sorted by their bytes, which is the order of code points.
    """

    def __init__(self, encoded: pa.LargeBinaryArray) -> None:
        """``encoded``: sorted and distinct, which is not checked."""
        self._encoded = encoded
        _, ends, text = encoded.buffers()
        # An Arrow scalar for each name would cost more than to decode a small crop.
        self._ends = memoryview(ends or bytes(8)).cast("B").cast("q")[encoded.offset :]
        self._text = memoryview(text or b"")

    @classmethod
    def sorted(cls, names: Iterable[str]) -> tuple[Names, NDArray[np.int64]]:
        """The names in order, and for each the place it was given at."""
        given = pa.concat_arrays(_pieces(map(encode, names)))
        order = pc.sort_indices(given)
        return cls(given.take(order)), order.to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, position: int) -> str:
        return decode(self._at(position))

    def __iter__(self) -> Iterator[str]:
        return (decode(self._at(position)) for position in range(len(self)))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str) -> int | None:
        """The position of ``name``, or None."""
        wanted = encode(name)
        low, high = 0, len(self._encoded)
        while low < high:
            middle = (low + high) // 2
            if self._at(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self._at(low) == wanted else None

    def positions(self, names: pa.Array) -> NDArray[np.int64]:
        """The position of each of ``names`` (an array of text); -1 for those that are not here."""
        found = pc.index_in(names.cast(pa.large_binary()), value_set=self._encoded)
        positions: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return positions

    def equals(self, other: Names) -> bool:
        """Whether both hold the same names."""
        return bool(self._encoded.equals(other._encoded))

    def repeated(self) -> str | None:
        """A name that is given more than once, and so makes these no `Names`; else None."""
        again = pc.equal(self._encoded[1:], self._encoded[:-1])
        at: int = pc.index(again, True).as_py()
        return None if at < 0 else self[at]

    def _at(self, position: int) -> bytes:
        if not 0 <= position < len(self):
            raise IndexError(f"name {position} of {len(self)}")
        return bytes(self._text[self._ends[position] : self._ends[position + 1]])


def _pieces(encoded: Iterator[bytes]) -> Iterator[pa.LargeBinaryArray]:
    """As arrays; as objects of Python's own, 200,000 names take 15 MB more."""
    while True:
        piece = pa.array(islice(encoded, _PIECE_NAMES), pa.large_binary())
        yield piece
        if len(piece) < _PIECE_NAMES:
            return


def encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
