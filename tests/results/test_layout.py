"""What runs and their files are called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cvm_batch.results.layout import RunName

#: The least time between two runs' beginnings that their names tell.
_STEP = timedelta(microseconds=16)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_runs_sort_by_the_time_that_they_began(now: datetime) -> None:
    first, second = RunName.new(now), RunName.new(now + _STEP)
    assert first.run_id < second.run_id
    assert RunName.of(first.run_id) == first


def test_two_runs_at_once_are_called_differently() -> None:
    now = datetime(2026, 1, 31, 22, tzinfo=UTC)
    assert len({RunName.new(now).run_id for _ in range(20)}) > 15
