from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
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
    ("hour", "minute", "expected"),
    [
        (20, 0, datetime(2026, 6, 2, 5, 30)),
        (23, 59, datetime(2026, 6, 2, 5, 30)),
        (0, 0, datetime(2026, 6, 1, 5, 30)),
        (5, 29, datetime(2026, 6, 1, 5, 30)),
        # Tried again after the end, or begun before the evening: over already.
        (5, 30, datetime(2026, 6, 1, 5, 30)),
        (12, 0, datetime(2026, 6, 1, 5, 30)),
        (19, 59, datetime(2026, 6, 1, 5, 30)),
    ],
)
def test_a_window_ends_once_a_night(hour: int, minute: int, expected: datetime) -> None:
    now = datetime(2026, 6, 1, hour, minute).astimezone()
    assert moment("20:00-05:30", now) == expected.astimezone().timestamp()


def test_a_window_may_lie_within_a_day() -> None:
    ends = datetime(2026, 6, 1, 13, 0).astimezone()
    assert moment("11:00-13:00", NOON) == ends.timestamp()
    assert moment("13:00-14:00", NOON) == (ends - timedelta(hours=23)).timestamp()
    assert moment("12:00-12:00", NOON) == (NOON + timedelta(days=1)).timestamp()


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("now", "text", "expected"),
    [
        # The hour from 02:00 on comes twice.
        ("2026-10-25T02:30+01:00", "02:45", "2026-10-25T02:45+01:00"),
        ("2026-10-25T02:30+01:00", "22:00-02:45", "2026-10-25T02:45+01:00"),
        ("2026-10-25T02:30+02:00", "02:45", "2026-10-25T02:45+02:00"),
        ("2026-10-25T02:30+02:00", "02:15", "2026-10-25T02:15+01:00"),
        ("2026-10-25T02:00:05+02:00", "02:00-06:00", "2026-10-25T06:00+01:00"),
        ("2026-10-25T02:40+02:00", "02:30-6:00", "2026-10-25T06:00+01:00"),
        ("2026-10-24T20:00+02:00", "06:00", "2026-10-25T06:00+01:00"),
        ("2026-10-24T20:00+02:00", "20:00-06:00", "2026-10-25T06:00+01:00"),
        # It does not come.
        ("2026-03-29T00:00+01:00", "02:30", "2026-03-29T03:30+02:00"),
        ("2026-03-29T01:59+01:00", "03:00", "2026-03-29T03:00+02:00"),
        ("2026-03-29T03:00:05+02:00", "02:30-06:00", "2026-03-29T06:00+02:00"),
        ("2026-03-29T03:10+02:00", "02:15-06:00", "2026-03-29T06:00+02:00"),
        ("2026-03-28T20:00+01:00", "06:00", "2026-03-29T06:00+02:00"),
    ],
)
def test_the_nights_in_which_the_clock_is_set(now: str, text: str, expected: str) -> None:
    found = moment(text, datetime.fromisoformat(now).astimezone())
    assert found == datetime.fromisoformat(expected).timestamp()


def test_a_time_of_a_toml_file() -> None:
    (written,) = tomllib.loads("until = 05:30:00").values()
    assert Until().convert(written, None, None) == Until().convert("05:30", None, None)
    with pytest.raises(click.BadParameter, match="'8' is neither a time"):
        Until().convert(8, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28_800), ("90m", 5_400), ("1h30m", 5_400), ("45s", 45)]
)
def test_a_duration_counts_from_now(text: str, seconds: int) -> None:
    assert moment(text, NOON) == (NOON + timedelta(seconds=seconds)).timestamp()


@pytest.mark.parametrize(
    "text", ["", "25:00", "6", "06:60", "soon", "1d", "-1h", "30m1h", "h", "20:00-", "20:00-8h"]
)
def test_all_else_is_refused(text: str) -> None:
    assert moment(text, NOON) is None
    with pytest.raises(click.BadParameter, match="neither a time"):
        Until().convert(text, None, None)
