"""Bundles known by name: those shipped in the package, and a folder of one's own.

    MODELS/
      <name>/bundle.json ...     a bundle that somebody put there
      store/<digest>/            bundles that were registered, each once
      names.jsonl                who registered what under which name, the newest last

MODELS is what the environment variable CVM_BATCH_MODELS names, else
``~/.local/share/cvm-batch/models``. Nothing in it is ever changed: a name points to the bundle
of its last line, and rolling back adds a line.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cvm_batch.errors import BundleError, BundleNotFoundError, UsageError
from cvm_batch.model.bundle import SPEC_FILE, Bundle, load_bundle

#: Environment variable naming a folder whose sub-folders are bundles.
MODELS_VARIABLE = "CVM_BATCH_MODELS"
_SHIPPED = Path(__file__).parent.parent / "assets" / "bundles"
_STORE = "store"
_NAMES = "names.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of a name's history."""

    name: str
    digest: str
    """Of the bundle, as `Bundle.digest`."""
    at: str
    """UTC, ISO 8601."""
    by: str
    """The account's name."""
    rolled_back: bool = False
    """Whether the name was made to mean an earlier bundle again."""


def models_folder() -> Path:
    """Where bundles are registered; it need not exist."""
    own = os.environ.get(MODELS_VARIABLE)
    return Path(own) if own else Path.home() / ".local" / "share" / "cvm-batch" / "models"


def known_bundles() -> dict[str, Path]:
    """Folder of each bundle by name; one's own wins over a shipped one of that name."""
    found = {
        spec.parent.name: spec.parent
        for folder in (_SHIPPED, models_folder())
        for spec in sorted(folder.glob(f"*/{SPEC_FILE}"))
    }
    return found | {entry.name: _stored(entry.digest) for entry in history()}


def list_bundles() -> list[tuple[str, Path, Bundle | BundleError]]:
    """Name, folder, and the verified bundle or what is wrong with it, by name."""
    listed: list[tuple[str, Path, Bundle | BundleError]] = []
    for name, path in sorted(known_bundles().items()):
        try:
            listed.append((name, path, load_bundle(path)))
        except BundleError as error:
            listed.append((name, path, error))
    return listed


def find_bundle(name_or_path: str) -> Bundle:
    """Load and verify the bundle of that path or name. Raises BundleError."""
    path = Path(name_or_path)
    if (path / SPEC_FILE).is_file():
        return load_bundle(path)
    known = known_bundles()
    if name_or_path in known:
        return load_bundle(known[name_or_path])
    raise BundleNotFoundError(
        f"No bundle called or at {name_or_path!r}. Known by name: {', '.join(sorted(known))}. "
        f"Give a folder with {SPEC_FILE} in it, or set {MODELS_VARIABLE} to a folder of bundles."
    )


def history(name: str | None = None) -> list[Entry]:
    """What was registered, oldest first; of one name, or of all. Raises BundleError."""
    path = models_folder() / _NAMES
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        entries = [_entry(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(
            f"{path} cannot be read ({error}): take out the line that somebody changed. The "
            f"bundles themselves lie in {path.with_name(_STORE)}, by digest."
        ) from error
    return [entry for entry in entries if name in (None, entry.name)]


def promote(bundle: Bundle, name: str) -> Entry:
    """Register a copy of ``bundle`` under ``name``, which ``submit --model`` then takes.

    Raises UsageError for a name that cannot be one, BundleError where nothing can be written.
    """
    check_name(name)
    stored = _stored(bundle.digest)
    try:
        if not stored.is_dir():
            stored.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".", dir=stored.parent))
            shutil.copytree(bundle.path, building, dirs_exist_ok=True)
            building.chmod(0o755)
            building.rename(stored)
        load_bundle(stored)
        return _add(name, bundle.digest)
    except OSError as error:
        raise BundleError(
            f"{stored.parent} cannot be written to ({error.strerror}). Make room, or set "
            f"{MODELS_VARIABLE} to a folder that you may write to."
        ) from error


def roll_back(name: str, digest: str | None = None) -> Entry:
    """Let ``name`` mean an earlier bundle again: the one before, or that of ``digest``, of
    which the first digits suffice. Rolled back twice, it means the one before the one before.
    Raises BundleError where there is none."""
    entries = history(name)
    if not entries:
        raise BundleNotFoundError(f"Nothing was registered as {name!r}: see `cvm-batch models`.")
    now = entries[-1].digest
    earlier = _before(entries) if digest is None else [entry.digest for entry in entries]
    matching = [one for one in earlier if one != now and one.startswith(digest or "")]
    if not matching:
        raise BundleNotFoundError(
            f"{name} has no earlier bundle{f' {digest}' if digest else ''}. "
            f"`cvm-batch models history {name}` lists them."
        )
    load_bundle(_stored(matching[-1]))
    return _add(name, matching[-1], rolled_back=True)


def _before(entries: Sequence[Entry]) -> list[str]:
    """The digests that lie before a name's present one, without those that were rolled back."""
    stack: list[str] = []
    for entry in entries:
        if entry.rolled_back and entry.digest in stack:
            while stack[-1] != entry.digest:
                stack.pop()
        else:
            stack.append(entry.digest)
    return stack[:-1]


def check_name(name: str) -> None:
    """Raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name == _STORE:
        raise UsageError(
            f"{name!r} cannot name a bundle: take letters, digits, dots, dashes and underscores."
        )


def _stored(digest: str) -> Path:
    return models_folder() / _STORE / digest


def _entry(line: Mapping[str, Any]) -> Entry:
    # A later version may write more.
    return Entry(**{field.name: line[field.name] for field in fields(Entry) if field.name in line})


def _add(name: str, digest: str, *, rolled_back: bool = False) -> Entry:
    entry = Entry(
        name=name,
        digest=digest,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=_account(),
        rolled_back=rolled_back,
    )
    # An earlier version reads no other fields than its own.
    told = {key: value for key, value in asdict(entry).items() if value is not False}
    line = json.dumps(told) + "\n"
    # One write at the file's end: two at a time do not mix.
    descriptor = os.open(models_folder() / _NAMES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return entry


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        return f"uid {os.getuid()}"
