"""Parts of a file, read together where that pays."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvm_batch.archives.places import spans
from cvm_batch.archives.places.disk import DiskFile
from cvm_batch.archives.places.spans import read_spans

DATA = np.random.default_rng(0).bytes(3000)


class CountingFile(DiskFile):
    """Remembers what it was asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[int] = []

    def read_at(self, offset: int, size: int) -> bytes:
        self.asked.append(size)
        return super().read_at(offset, size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(st.tuples(st.integers(0, 3100), st.integers(0, 400)), max_size=20))
def test_any_spans_are_read_as_they_lie(
    path: Path, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [(start, start + size) for start, size in parts]
    with monkeypatch.context() as patch, closing(CountingFile(path)) as file:
        patch.setattr(spans, "_MOST_BYTES", 500)
        patch.setattr(spans, "_GAP_BYTES", 50)
        found = [bytes(part) for part in read_spans(file, wanted)]
        assert all(size <= 500 for size in file.asked)
    assert found == [DATA[start:stop] for start, stop in wanted]


def test_neighbours_cost_one_read(path: Path) -> None:
    wanted = [(at, at + 90) for at in range(0, 3000, 100)]
    with closing(CountingFile(path)) as file:
        assert len(list(read_spans(file, wanted))) == 30
        assert len(file.asked) == 1


def test_what_lies_far_off_is_not_read_along(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_GAP_BYTES", 50)
    with closing(CountingFile(path)) as file:
        list(read_spans(file, [(0, 10), (2000, 2010), (1000, 1010)]))
        assert file.asked == [10, 10, 10]
