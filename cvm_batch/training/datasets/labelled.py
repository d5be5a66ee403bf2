"""A labelled set of cell images, whichever layout it came from."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvm_batch.archives.places.files import printable
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import DataSetError, UnreadableImageError
from cvm_batch.model.bundle import file_sha256
from cvm_batch.model.classes import CVM_CERVIX_CLASSES

#: `LabelledCells.grouped_by` where nothing is known that cells have in common.
BY_FILE = "file"
#: Why an image is among the skipped ones.
UNREADABLE = "does not decode as an image"


class CellImage(Protocol):
    """Where one cell's pixels are."""

    @property
    def name(self) -> str:
        """Unique in its data set; with forward slashes where it is a path."""
        ...

    def read(self) -> NDArray[np.uint8]:
        """Decode it at its own size, as uint8 RGB [h, w, 3].

        Raises DataSetError, as UnreadableImageError where it does not decode.
        """
        ...

    def digest(self) -> str:
        """Of its content as stored: a file's bytes, say. Raises DataSetError."""
        ...

    def pixel_digest(self) -> str:
        """Equal where two cells are the same image, however each is stored.

        Raises DataSetError, as UnreadableImageError where it does not decode.
        """
        ...


@dataclass(frozen=True)
class ImageFile:
    """A crop in a file of its own."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    def read(self) -> NDArray[np.uint8]:
        return read_tile(self.path)

    def digest(self) -> str:
        return file_digest(self.path)

    def pixel_digest(self) -> str:
        try:
            known = self.path.stat()
        except OSError as error:
            raise _not_read(self.path, error) from error
        return _pixels_of_file(self.path, known.st_mtime_ns, known.st_size)


@dataclass(frozen=True, kw_only=True)
class LabelledCells:
    """n cells. Make one with `load_cells`."""

    where: str
    """The folders that it was read from, for people."""
    images: tuple[CellImage, ...]
    labels: NDArray[np.int64]
    """[n], positions in ``class_names``."""
    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    """[n], what must not be torn apart: frame, cluster image, or the image itself. Images
    with the same pixels are in one group."""
    grouped_by: str
    """What a group is, for people: ``frame``, ``cluster image``, ``file`` ..."""
    cell_ids: tuple[str, ...]
    digests: tuple[str, ...]
    """[n], of the images' contents as stored."""
    pixel_digests: tuple[str, ...]
    """[n], equal where two cells are the same image."""
    skipped: tuple[tuple[str, str], ...] = ()
    """What was found and not taken: a name, and why."""
    notes: tuple[str, ...] = ()
    """What else there is to say of how the set was read, for people."""

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int) -> NDArray[np.uint8]:
        """The cell's own pixels, uint8 RGB [h, w, 3]. Raises DataSetError."""
        return self.images[position].read()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over each image's name, content and label, in the order of the names."""
        rows = sorted(
            (image.name, digest, self.class_names[label])
            for image, digest, label in zip(self.images, self.digests, self.labels, strict=True)
        )
        return hashlib.sha256("".join("\0".join(row) + "\n" for row in rows).encode()).hexdigest()

    def duplicates(self) -> list[tuple[int, ...]]:
        """Positions of images with the same pixels, each set of them once."""
        positions = defaultdict(list)
        for position, digest in enumerate(self.pixel_digests):
            positions[digest].append(position)
        return [tuple(found) for found in positions.values() if len(found) > 1]

    def to_json(self) -> dict[str, Any]:
        """What was found, what was skipped and why, duplicates."""
        return {
            "where": printable(self.where),
            "cells": len(self),
            "groups": len(set(self.groups)),
            "grouped_by": self.grouped_by,
            "notes": list(self.notes),
            "skipped": [{"name": printable(name), "why": why} for name, why in self.skipped],
            "same_pixels": [
                [printable(self.images[position].name) for position in same]
                for same in self.duplicates()
            ],
        }

    def report(self) -> list[str]:
        """For people: what was found, what was skipped and why, duplicates."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        groups = len(set(self.groups))
        lines = [
            f"{self.where}: {len(self)} cells of {len(self.class_names)} classes "
            f"in {groups} groups (by {self.grouped_by})",
            *(f"  {name}: {count}" for name, count in zip(self.class_names, counts, strict=True)),
        ]
        lines += [f"  {note}" for note in self.notes]
        for why, count in Counter(why for _, why in self.skipped).items():
            first = next(name for name, reason in self.skipped if reason == why)
            lines.append(f"  skipped {count}, {why}: {first}{' ...' if count > 1 else ''}")
        if found := self.duplicates():
            across = [same for same in found if len({self.labels[at] for at in same}) > 1]
            lines.append(
                f"  {sum(map(len, found))} images are the same as others pixel by pixel, in "
                f"{len(found)} sets; {len(across)} sets lie across classes"
            )
            lines += [
                "  across classes: "
                + ", ".join(
                    f"{self.images[at].name} ({self.class_names[self.labels[at]]})" for at in same
                )
                for same in across
            ]
        return lines

    def regrouped(self, classes: Mapping[str, Sequence[str]]) -> LabelledCells:
        """The cells under the names of ``classes``, each of which takes in some of the data's.

        Empty ``classes`` leave all as it is. Cells of other classes are skipped. Raises
        DataSetError where nothing of one class is there.
        """
        if not classes:
            return self
        new_of = {old: new for new, members in classes.items() for old in members}
        # Data that bears the new names already is as welcome.
        new_of |= {new: new for new in classes if new in self.class_names}
        names = [new_of.get(self.class_names[label]) for label in self.labels]
        if absent := sorted(set(classes) - set(names)):
            raise DataSetError(
                f"{self.where} has no cells of {', '.join(absent)}, which would be "
                f"{'; '.join(', '.join(classes[name]) for name in absent)}. It has "
                f"{', '.join(self.class_names)}. Take another recipe, or put the folders right."
            )
        kept = [place for place, name in enumerate(names) if name is not None]
        left_out = [name for name in self.class_names if name not in new_of]
        class_names = tuple(classes)
        return replace(
            self,
            images=tuple(self.images[place] for place in kept),
            labels=np.array([class_names.index(names[p] or "") for p in kept], dtype=np.int64),
            class_names=class_names,
            groups=tuple(self.groups[place] for place in kept),
            cell_ids=tuple(self.cell_ids[place] for place in kept),
            digests=tuple(self.digests[place] for place in kept),
            pixel_digests=tuple(self.pixel_digests[place] for place in kept),
            skipped=self.skipped + tuple((name, "of a class not asked for") for name in left_out),
        )


def labelled(
    where: str,
    images: Sequence[CellImage],
    names: Sequence[str],
    groups: Sequence[str],
    *,
    grouped_by: str,
    cell_ids: Sequence[str],
    skipped: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> LabelledCells:
    """The set of these cells, ``names`` being their classes; duplicates join their groups.

    Images that do not decode are skipped. Raises DataSetError for files that cannot be read.
    """
    # Each is decoded here, so that a damaged file is known before hours of training, and the
    # same image is known for it in whichever format it came.
    with ThreadPoolExecutor(usable_cpus()) as pool:
        pixels = list(pool.map(_pixels_or_none, images))
    kept = [place for place, found in enumerate(pixels) if found]
    lost = [place for place, found in enumerate(pixels) if not found]
    skipped = [*skipped, *((images[place].name, UNREADABLE) for place in lost)]
    images = [images[place] for place in kept]
    names, groups, cell_ids = (
        [values[place] for place in kept] for values in (names, groups, cell_ids)
    )
    class_names = class_order(names)
    position = {name: place for place, name in enumerate(class_names)}
    cells = LabelledCells(
        where=where,
        images=tuple(images),
        labels=np.array([position[name] for name in names], dtype=np.int64),
        class_names=class_names,
        groups=tuple(groups),
        grouped_by=grouped_by,
        cell_ids=tuple(cell_ids),
        digests=tuple(image.digest() for image in images),
        pixel_digests=tuple(found for found in pixels if found),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )
    return replace(cells, groups=_joined(cells))


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The paper's order for its classes, then any others by name."""
    place = {name: position for position, name in enumerate(CVM_CERVIX_CLASSES)}
    return tuple(sorted(set(names), key=lambda name: (place.get(name, len(place)), name)))


def read_tile(path: Path) -> NDArray[np.uint8]:
    """Decode one image at its own size, as uint8 RGB [h, w, 3].

    Raises DataSetError, as UnreadableImageError where it does not decode.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    # Pillow's decoders raise errors of many kinds on damaged files, SyntaxError among them.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            # A disk or a permission, and no fault of the image: to go on without it would be
            # to train on what happened to be readable.
            raise _not_read(path, error) from error
        raise UnreadableImageError(
            f"{path} does not decode as an image ({error}). "
            "Fetch it again, or take it out of the data set."
        ) from error


def pixel_digest(tile: NDArray[np.uint8]) -> str:
    """SHA-256 over the shape and the pixels of a tile uint8 [h, w, 3]."""
    digest = hashlib.sha256(repr(tile.shape).encode())
    digest.update(tile.tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises DataSetError."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise _not_read(path, error) from error


def _not_read(path: Path, error: OSError) -> DataSetError:
    return DataSetError(
        f"{path} cannot be read ({error.strerror}). Fetch it again, or take it out of the data set."
    )


def _pixels_or_none(image: CellImage) -> str | None:
    try:
        return image.pixel_digest()
    except UnreadableImageError:
        return None


# A study reads the same folders for each of its trials.
@lru_cache(maxsize=200_000)
def _pixels_of_file(path: Path, mtime_ns: int, size: int) -> str:
    return pixel_digest(read_tile(path))


def _joined(cells: LabelledCells) -> tuple[str, ...]:
    """Groups in which the same image lies become one, under the name of the first."""
    name_of: dict[str, str] = {}

    def root(group: str) -> str:
        while group in name_of:
            group = name_of[group]
        return group

    for same in cells.duplicates():
        first = root(cells.groups[same[0]])
        for position in same[1:]:
            if (other := root(cells.groups[position])) != first:
                name_of[other] = first
    return tuple(root(group) for group in cells.groups)
