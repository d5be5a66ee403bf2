"""What one node sees of that which a run needs.

Asked on every node before a job starts, and by each replica before it serves: a node may join
before its shares are mounted, or lose one in the night.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cvm_batch.archives.places.place import place_of
from cvm_batch.errors import CvmBatchError
from cvm_batch.results.folder import ResultsFolder

_SPEC = "bundle.json"
#: Slides of a plan that each replica looks for: one asks a disk or a store for each of them.
_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a node must see, as the driver does. Plain data that pickles."""

    paths: tuple[str, ...]
    """Inputs, and of folders something in them: an empty mount point has the same name."""
    bundle: str | None
    """A bundle's folder."""
    bundle_digest: str | None
    results: str
    """The results folder, absolute, or its address."""
    probe: str
    """Begins the names of the files by which nodes show the driver that the results folder is
    the same one; they lie where unfinished files do."""

    @classmethod
    def of(
        cls,
        inputs: Sequence[str],
        bundle: Path | None,
        digest: str | None,
        results: ResultsFolder,
        probe: str,
    ) -> Needs:
        """As the driver sees them now. Raises NoSlidesError, of which the driver tells itself."""
        return cls(
            paths=tuple(path for uri in inputs for path in (uri, *_something_in(uri))),
            bundle=str(bundle) if bundle is not None else None,
            bundle_digest=digest,
            results=str(results.everywhere),
            probe=probe,
        )

    def seen_here(self) -> Needs:
        """But for paths that this process does not see either: no node is to blame for those."""
        return replace(self, paths=tuple(filter(_sees, self.paths)))

    def probe_of(self, node: str) -> str:
        return f".tmp/{self.probe}-{node}"


def samples_of(uris: Iterable[str]) -> tuple[str, ...]:
    """A few slides that stand for all: from each folder the first, of many folders some."""
    by_folder: dict[str, str] = {}
    for uri in uris:
        by_folder.setdefault(uri.rpartition("/")[0], uri)
    found = [by_folder[folder] for folder in sorted(by_folder)]
    return tuple(found[:: math.ceil(len(found) / _SAMPLES)]) if found else ()


def lacking_here(needs: Needs, node: str) -> list[str]:
    """What this node does not see, a sentence each; leaves its probe in the results folder."""
    lacking = [f"no {path}" for path in needs.paths if not _sees(path)]
    if needs.bundle is not None:
        lacking += _wrong_with_bundle(Path(needs.bundle), needs.bundle_digest)
    try:
        ResultsFolder(needs.results).replace(needs.probe_of(node), node.encode())
    except CvmBatchError:
        lacking.append(f"cannot write to the results folder {needs.results}")
    return lacking


def probe_arrived(needs: Needs, node: str) -> bool:
    """Whether the driver sees what a node has written; the probe is removed."""
    results = ResultsFolder(needs.results)
    try:
        arrived = results.read(needs.probe_of(node)) == node.encode()
    except (FileNotFoundError, CvmBatchError):
        return False
    results.remove([needs.probe_of(node)])
    return arrived


def _wrong_with_bundle(folder: Path, digest: str | None) -> list[str]:
    try:
        found = hashlib.sha256((folder / _SPEC).read_bytes()).hexdigest()
    except OSError:
        return [f"no bundle at {folder}"]
    return [] if found == digest else [f"another bundle at {folder}"]


def _sees(uri: str) -> bool:
    try:
        return place_of(uri).exists()
    except CvmBatchError:
        return False


def _something_in(uri: str) -> list[str]:
    """The first thing in a folder on a disk."""
    if not Path(uri).is_dir():
        return []
    names = (path.name for path in Path(uri).iterdir() if not path.name.startswith("."))
    first = min(names, default=None)
    return [] if first is None else [str(Path(uri, first))]
