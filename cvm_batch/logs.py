"""Structured logs: a JSON object on each line, for those who collect them.

Modules log by `logging` with what belongs to the event as ``extra={"event": {...}}``; without
`log_json` nothing is written. A slide goes by its identity, a digest, and by its pseudonym, or by
its name where no key for pseudonyms is set.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from cvm_batch.pseudonyms import Pseudonyms

ROOT_LOGGER = "cvm_batch"


def log_event(logger: logging.Logger, message: str, **event: Any) -> None:
    """One event; fields that are None are left out."""
    logger.info(message, extra={"event": {k: v for k, v in event.items() if v is not None}})


class JsonFormatter(logging.Formatter):
    """``time`` (UTC), ``level``, ``logger``, ``message``, and the event's own fields."""

    def __init__(self, pseudonyms: Pseudonyms | None = None) -> None:
        super().__init__()
        self._pseudonyms = pseudonyms

    def format(self, record: logging.LogRecord) -> str:
        event: Mapping[str, Any] = getattr(record, "event", {})
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._named(event),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)

    def _named(self, event: Mapping[str, Any]) -> dict[str, Any]:
        named = dict(event)
        if self._pseudonyms is not None and "slide_id" in named:
            named["slide"] = self._pseudonyms.of(named.pop("slide_id"))
            named.pop("detail", None)  # sentences name files
        return named


@contextmanager
def log_json(stream: TextIO, pseudonyms: Pseudonyms | None = None) -> Iterator[None]:
    """Write this package's log to ``stream`` while the context lasts."""
    logger = logging.getLogger(ROOT_LOGGER)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(pseudonyms))
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagates
