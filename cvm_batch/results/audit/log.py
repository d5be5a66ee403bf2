"""The log's entries: written once, chained to the one before, read back."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any

from cvm_batch.errors import ResultsError
from cvm_batch.results.folder import ResultsFolder

AUDIT_VERSION = 1
FOLDER = "audit"
ACTOR_VARIABLE = "CVM_BATCH_ACTOR"
_NAME = re.compile(rf"{FOLDER}/(\d{{6,}})\.json")


class Event(StrEnum):
    RUN_STARTED = "run_started"
    RUN_ENDED = "run_ended"
    RUNS_FOUND = "runs_found"
    """Runs that did not end in order, or are older than the log; nothing more comes of them."""
    MODEL_CHANGED = "model_changed"
    """The run that starts next uses another bundle than the one before it."""
    ERASURE_STARTED = "erasure_started"
    ERASURE_ENDED = "erasure_ended"


@dataclass(frozen=True)
class Entry:
    """One entry that is whole, by itself."""

    number: int
    event: Event
    facts: Mapping[str, Any]
    """What the event is about."""
    previous: str | None
    """SHA-256 of the bytes of the entry before; None in the first one."""
    digest: str
    """SHA-256 of this entry's content, without this digest."""

    def reference(self) -> dict[str, Any]:
        """As run manifests, summaries and notices name it."""
        return {"entry": self.number, "digest": self.digest}


def path_of(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def numbers(results: ResultsFolder) -> list[int]:
    """The entries that are there, in their order."""
    names = map(_NAME.fullmatch, results.names(FOLDER))
    return sorted(int(name[1]) for name in names if name)


def append(results: ResultsFolder, event: Event, facts: Mapping[str, Any]) -> Entry:
    """Write the next entry. ``facts`` must name no slide. Raises CommitError, ResultsError."""
    while True:
        last = max(numbers(results), default=0)
        # Of the bytes, whatever they are: a damaged entry must not end all nights to come.
        before = sha256(results.read(path_of(last))).hexdigest() if last else None
        data = _encode(last + 1, event, facts, before)
        if results.put_new(path_of(last + 1), data):  # else somebody else was quicker
            return parse(last + 1, data)


def parse(number: int, data: bytes) -> Entry:
    """The entry that ``data`` are the bytes of. Raises ValueError where a bit of it differs."""
    try:
        content = json.loads(data)
        digest = content.pop("digest")
        entry = Entry(
            number, Event(content["event"]), content["facts"], content["previous"], digest
        )
        if content["entry"] != number:
            raise ValueError(f"it is the entry {content['entry']!r}")
        if content["audit_version"] != AUDIT_VERSION:
            raise ValueError(f"its version is {content['audit_version']!r}")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no entry: {error!r}") from error
    if _digest(content) != digest or _canonical(content | {"digest": digest}) != data:
        raise ValueError("its content differs from its digest")
    return entry


def whole_entries(results: ResultsFolder) -> Iterator[Entry]:
    """All entries but damaged ones, of which `AuditCheck` tells. Raises ResultsError."""
    found = numbers(results)
    for number, data in zip(found, results.read_all(list(map(path_of, found))), strict=True):
        with suppress(ValueError):
            yield parse(number, data or b"")


def newest_entries(results: ResultsFolder) -> Iterator[Entry]:
    """The same, the newest first, each read when it is asked for."""
    for number in reversed(numbers(results)):
        with suppress(ValueError, FileNotFoundError):
            yield parse(number, results.read(path_of(number)))


def digests(results: ResultsFolder, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of some files. Raises ResultsError."""
    found = {}
    for name, data in zip(names, results.read_all(names), strict=True):
        if data is None:
            raise ResultsError(
                f"{results}/{name} has gone while the audit log was to tell of it. Try again."
            )
        found[name] = sha256(data).hexdigest()
    return found


def _encode(number: int, event: Event, facts: Mapping[str, Any], previous: str | None) -> bytes:
    content = {
        "audit_version": AUDIT_VERSION,
        "entry": number,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "who": who(),
        "event": str(event),
        "facts": dict(facts),
        "previous": previous,
    }
    return _canonical(content | {"digest": _digest(content)})


def who() -> str:
    """``user@host``, or what CVM_BATCH_ACTOR says."""
    if actor := os.environ.get(ACTOR_VARIABLE):
        return actor
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _digest(content: Mapping[str, Any]) -> str:
    return sha256(_canonical(content)).hexdigest()


def _canonical(content: Mapping[str, Any]) -> bytes:
    """The one text of ``content``: sorted, ASCII, without spaces, one line."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{text}\n".encode()
