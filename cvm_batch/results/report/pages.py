"""Templates, style and script become pages that load nothing and run nothing else.

Style and script stand in the page, and its content security policy names their digests: that
holds from ``file:`` in every browser, where the meaning of ``'self'`` differs, and a page that is
mailed alone is whole.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        commands=_commands,
        count=_count,
        percent=_percent,
        number=_number,
        signed=_signed,
        seconds=_seconds,
    )
    environment.globals.update(style=_style(), script=_script())
    return environment


def render(template: str, **values: Any) -> bytes:
    """A page from one of the templates beside this module; everything in ``values`` is escaped."""
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_digest(_style())}"
    )
    if values.get("data") is not None:
        policy += f"; script-src {_digest(_script())}"
    policy += "; img-src data:"
    text = _environment().get_template(template).render(**values, policy=policy)
    # A slide's name may be no Unicode; it is shown by its bytes.
    return text.encode("utf-8", "backslashreplace")


def _text(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


@cache
def _style() -> Markup:
    """Without comments and indentation: each page carries it."""
    text = re.sub(r"/\*.*?\*/", "", _text("report.css"), flags=re.DOTALL)
    lines = (line.strip() for line in text.splitlines())
    return Markup("\n".join(line for line in lines if line))  # noqa: S704 ours


@cache
def _script() -> Markup:
    return Markup(_text("worklist.js").strip())  # noqa: S704 ours


def _commands(text: str) -> Markup:
    """What stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 escaped


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


# Numbers as people read them; what is not known is a dash, never nothing and never 0.

_UNKNOWN = "\N{EN DASH}"


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _number(value: float | None, digits: int = 2) -> str:
    return _UNKNOWN if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _signed(value: float | None, digits: int = 1) -> str:
    return _UNKNOWN if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _seconds(value: float | None) -> str:
    """``3 h 05 min``, ``12 min``, ``8 s``."""
    if value is None:
        return _UNKNOWN
    minutes = round(value / 60)
    if value < 90:
        return f"{value:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
