"""``--until``: a time of day, a window of the day, or how long from now; and ``--settle``."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

import click

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_WINDOW = re.compile(rf"({_TIME.pattern})-({_TIME.pattern})")
_DURATION = re.compile(r"(?=.)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class Until(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """``06:00``, the next time the clock on the wall shows it, ``20:00-06:00``, the end of that
    window, or ``8h``, ``90m``, ``1h30m``.

    Outside of a window its end has passed, so that a run which is begun there ends at once: a
    night that is tried again in the morning does not go on through the day.

    Converts to seconds since the epoch.
    """

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        # A TOML file may hold a time that is none of a text.
        text = f"{value:%H:%M}" if isinstance(value, time) else str(value)
        found = moment(text, datetime.now().astimezone())
        if found is None:
            self.fail(
                f"{text!r} is neither a time such as 06:00 or 20:00-06:00 nor 8h, 90m or 1h30m."
            )
        return found


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """``5m``, ``90s``, ``1h30m``; converts to seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        if isinstance(value, float):  # it was converted already
            return value
        found = duration(str(value))
        if found is None:
            self.fail(f"{str(value)!r} is no duration such as 5m, 90s or 1h30m.")
        return found.total_seconds()


def duration(text: str) -> timedelta | None:
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def moment(text: str, now: datetime) -> float | None:
    """Seconds since the epoch, or None where ``text`` is neither; ``now`` knows its zone."""
    if match := _TIME.fullmatch(text):
        return _next(_parsed(match[0]), now).timestamp()
    if match := _WINDOW.fullmatch(text):
        begin, end = _parsed(match[1]), _parsed(match[4])
        ends = _next(end, now)
        shown = now.time()
        # By what the clock shows: an hour that comes twice, or not at all, changes nothing.
        is_open = begin <= shown < end if begin < end else shown >= begin or shown < end
        return (ends if is_open else _a_day_earlier(ends)).timestamp()
    lasting = duration(text)
    return None if lasting is None else (now + lasting).timestamp()


def _parsed(text: str) -> time:
    hour, minute = map(int, text.split(":"))
    return time(hour, minute)


def _next(shown: time, now: datetime) -> datetime:
    """When the clock on the wall shows a time after ``now``."""
    today = datetime.combine(now.date(), shown)
    moments = [*_moments(today), *_moments(today + timedelta(days=1))]
    return next(at for at in moments if at > now)


def _moments(wall: datetime) -> list[datetime]:
    """When the clock shows ``wall``: twice in the hour that is set back. Of one that is skipped, as
    long after it began as the time says."""
    moments = sorted({wall.replace(fold=fold).astimezone() for fold in (0, 1)})
    return [at for at in moments if at.replace(tzinfo=None) == wall] or moments[-1:]


def _a_day_earlier(at: datetime) -> datetime:
    """By the clock on the wall: a day may have 23 or 25 hours."""
    return (at.replace(tzinfo=None) - timedelta(days=1)).astimezone()
