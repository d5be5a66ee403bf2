"""Where packed slides go, under which names, and what is remembered of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.companions import WSI_SUFFIXES
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.packing.files import commit
from cvm_batch.archives.packing.manifest import PackManifest, read_manifest
from cvm_batch.archives.places.disk import DiskPlace
from cvm_batch.archives.tables.slides import ListedSlide
from cvm_batch.errors import SlideError, SlideIdCollisionError, UsageError

#: Raise it when the same slide is to be packed in another way.
_PACK_VERSION = 1
_MEMORY = ".packed"
#: Of what a slide's name may end with, the longer first.
_SUFFIXES = (".zarr.zip", ".zarr", ".zip", ".tar", ".tiff", ".tif", *sorted(WSI_SUFFIXES))
#: Bytes of a name, so that ``.<name>.partial`` is one as well.
_LONGEST_NAME = 240


@dataclass(frozen=True)
class PackRecord:
    """What was packed, and from what. The archive itself does not tell."""

    source: str
    """Of `source_key`."""
    digest: str
    """The archive's, by its manifest."""
    tiles: int
    unreadable: int
    size: int
    """Bytes of all files."""
    faults: tuple[str, ...]
    """What was wrong with the first few tiles that could not be read."""


@dataclass(frozen=True)
class PackTarget:
    """The place of one packed slide."""

    out: Path
    """Absolute."""
    name: PurePosixPath
    """Relative to ``out``, without suffix."""

    @property
    def archive(self) -> Path:
        return self._beside(f"{self.name.name}.zarr")

    @property
    def partial(self) -> Path:
        """The hidden folder in which the slide is packed."""
        return self._beside(f".{self.name.name}.partial")

    def prepare(self) -> None:
        self.partial.mkdir(parents=True, exist_ok=True)
        self._memory.parent.mkdir(parents=True, exist_ok=True)

    def remember(self, record: PackRecord) -> None:
        data = json.dumps(asdict(record), indent=1).encode()
        commit(self._memory, data, self.partial / "record")

    @property
    def is_remembered(self) -> bool:
        return self._memory.is_file()

    def finished(self, source: str) -> PackRecord | None:
        """The record of the archive, where it is there and was packed from ``source``."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            value = json.loads(self._memory.read_bytes())
            record = PackRecord(**value | {"faults": tuple(value["faults"])})
            if record.source == source and self._is_whole(record):
                return record
        return None

    def _is_whole(self, record: PackRecord) -> bool:
        """Whether the archive is the one that was packed, as far as sizes show."""
        with suppress(SlideError):
            manifest = read_manifest(DiskPlace.of(self.archive))
            return (
                manifest is not None
                and manifest.digest == record.digest
                and self._has_sizes(manifest)
            )
        return False

    def _has_sizes(self, manifest: PackManifest) -> bool:
        return all(
            (self.archive / name).stat().st_size == file.size
            for name, file in manifest.files.items()
        )

    @property
    def _memory(self) -> Path:
        return self.out / _MEMORY / self.name.with_name(f"{self.name.name}.json")

    def _beside(self, name: str) -> Path:
        return self.out / self.name.with_name(name)


def source_key(identity: str, address: SlideAddress, options: OpenOptions) -> str:
    """SHA-256 of all that decides which bytes a packed slide has."""
    deciding = {
        "pack_version": _PACK_VERSION,
        "identity": identity,
        "cells_expected": address.cells_expected,
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def targets(slides: Sequence[ListedSlide], out: Path, *, force: bool) -> Mapping[str, PackTarget]:
    """Where each slide goes, by its slide_id.

    Raises UsageError for names that no folder can have and for archives that would be
    lost, SlideIdCollisionError where two slides would be one archive.
    """
    found: dict[PurePosixPath, ListedSlide] = {}
    for slide in slides:
        name = _target_name(slide.slide_id)
        first = found.setdefault(name, slide)
        if first is not slide:
            raise _collision(first, slide, f"both be packed as {name}.zarr")
    for name, slide in found.items():
        for folder in name.parents:
            holder = found.get(folder.with_suffix("")) if folder.suffix == ".zarr" else None
            if holder is not None:
                raise _collision(slide, holder, f"go to {name}.zarr, one inside the other")
    result = {slide.slide_id: PackTarget(out, name) for name, slide in found.items()}
    for slide in slides:
        _check_free(result[slide.slide_id], slide, force)
    return result


def check_outside(out: Path, sources: Iterable[str]) -> None:
    """Raise UsageError where packed slides would be found as slides of their own sources."""
    for source in sources:
        folder = Path(source)
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"{out} lies in {source}, so that packed slides would be packed again next "
                "time. Choose a folder outside of it with --out."
            )


@contextmanager
def holding(out: Path) -> Iterator[None]:
    """Make the folder ``out`` and hold it for this process. Raises UsageError."""
    lock = out / _MEMORY / ".lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written: {error.strerror or error}. Choose another folder with "
            "--out, or mend its permissions."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{out} cannot be locked: {error.strerror or error}. If another pack is writing "
                "to it, wait for its end or choose another folder with --out."
            ) from error
        yield


def _target_name(slide_id: str) -> PurePosixPath:
    *folders, last = slide_id.split("/")
    suffix = next((end for end in _SUFFIXES if last.lower().endswith(end)), "")
    parts = [*folders, last[: len(last) - len(suffix)]]
    hidden = any(part.startswith(".") for part in parts)
    long = any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in parts)
    if hidden or long or not all(parts) or "\0" in slide_id:
        raise UsageError(
            f"The slide {slide_id!r} cannot be packed under its name: packed slides are folders "
            "named after their slide_id, whose parts must not be empty, hidden, '..' or longer "
            f"than {_LONGEST_NAME} bytes. Rename it, or give it another slide_id in a manifest."
        )
    return PurePosixPath(*parts)


def _collision(one: ListedSlide, other: ListedSlide, what: str) -> SlideIdCollisionError:
    return SlideIdCollisionError(
        f"{one.slide_id!r} ({one.address.uri}) and {other.slide_id!r} ({other.address.uri}) "
        f"would {what}. Rename one of them, or pack it elsewhere."
    )


def _check_free(target: PackTarget, slide: ListedSlide, force: bool) -> None:
    if not os.path.lexists(target.archive):
        return
    with suppress(OSError):  # a source that is no file of this machine
        if os.path.samefile(target.archive, slide.address.uri):
            raise UsageError(
                f"{target.archive} would be packed in its own place. Choose another folder with "
                "--out."
            )
    if not force and not target.is_remembered:
        raise UsageError(
            f"{target.archive} is there and was not packed here. Take it away, choose another "
            "folder with --out, or give --force to have it replaced."
        )
