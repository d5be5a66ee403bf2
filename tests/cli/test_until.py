from __future__ import annotations

from datetime import datetime, timedelta

import click
import pytest

from cvm_batch.cli.until import Until, moment

NOON = datetime(2026, 6, 1, 12, 0).astimezone()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("06:00", datetime(2026, 6, 2, 6, 0)),
        ("6:00", datetime(2026, 6, 2, 6, 0)),
        ("12:00", datetime(2026, 6, 2, 12, 0)),
        ("12:01", datetime(2026, 6, 1, 12, 1)),
        ("23:59", datetime(2026, 6, 1, 23, 59)),
    ],
)
def test_a_time_of_day_is_the_next_one(text: str, expected: datetime) -> None:
    assert moment(text, NOON) == expected.astimezone().timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28_800), ("90m", 5_400), ("1h30m", 5_400), ("45s", 45)]
)
def test_a_duration_counts_from_now(text: str, seconds: int) -> None:
    assert moment(text, NOON) == (NOON + timedelta(seconds=seconds)).timestamp()


@pytest.mark.parametrize("text", ["", "25:00", "6", "06:60", "soon", "1d", "-1h", "30m1h", "h"])
def test_all_else_is_refused(text: str) -> None:
    assert moment(text, NOON) is None
    with pytest.raises(click.BadParameter, match="neither a time"):
        Until().convert(text, None, None)
