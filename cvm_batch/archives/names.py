"""Many names, held compactly: a slide of 200,000 crops has 200,000 of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class Names:
    """Sorted, distinct names. A position is a name's place among them.

    Names are text as the operating system gives it: bytes that are no UTF-8 are
    surrogates. They are sorted by their bytes, which is the order of code points.
    """

    def __init__(self, encoded: pa.LargeBinaryArray) -> None:
        """``encoded``: sorted and distinct, which is not checked."""
        self._encoded = encoded

    @classmethod
    def sorted(cls, names: Iterable[str]) -> tuple[Names, NDArray[np.int64]]:
        """The names in order, and for each the place it was given at."""
        given = pa.array((encode(name) for name in names), pa.large_binary())
        order = pc.sort_indices(given)
        return cls(given.take(order)), order.to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, position: int) -> str:
        return decode(self._encoded[position].as_py())

    def __iter__(self) -> Iterator[str]:
        return (decode(name.as_py()) for name in self._encoded)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str) -> int | None:
        """The position of ``name``, or None."""
        wanted = encode(name)
        low, high = 0, len(self._encoded)
        while low < high:
            middle = (low + high) // 2
            if self._encoded[middle].as_py() < wanted:
                low = middle + 1
            else:
                high = middle
        found = low < len(self._encoded) and self._encoded[low].as_py() == wanted
        return low if found else None

    def positions(self, names: pa.Array) -> NDArray[np.int64]:
        """The position of each of ``names`` (an array of text); -1 for those that are not here."""
        found = pc.index_in(names.cast(pa.large_binary()), value_set=self._encoded)
        positions: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return positions


def encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
