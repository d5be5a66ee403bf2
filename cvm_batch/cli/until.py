"""``--until``: a time of day, or how long from now."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import click

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_DURATION = re.compile(r"(?=.)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class Until(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """``06:00``, the next time the clock on the wall shows it, or ``8h``, ``90m``, ``1h30m``.

    Converts to seconds since the epoch.
    """

    name = "time"

    def convert(
        self, value: str, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        found = moment(value, datetime.now().astimezone())
        if found is None:
            self.fail(f"{value!r} is neither a time such as 06:00 nor 8h, 90m or 1h30m.")
        return found


def moment(text: str, now: datetime) -> float | None:
    """Seconds since the epoch, or None where ``text`` is neither; ``now`` knows its zone."""
    if match := _TIME.fullmatch(text):
        at = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
        # A day later on the wall, which may be 23 or 25 hours.
        naive = at.replace(tzinfo=None) + timedelta(days=at <= now)
        return naive.astimezone().timestamp()
    if (match := _DURATION.fullmatch(text)) and any(match.groups()):
        hours, minutes, seconds = (int(group or 0) for group in match.groups())
        return (now + timedelta(hours=hours, minutes=minutes, seconds=seconds)).timestamp()
    return None
