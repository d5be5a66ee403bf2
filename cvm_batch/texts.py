"""Text of others, as slides' names are, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` on one line, without what breaks lines, turns text around or cannot be seen."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
