"""Labelled cell images on disk.

Two layouts are read:

    DIR/cells.csv              DIR/<class>/*.jpg
    DIR/<class>/<id>.jpg

With a table, the cells' microscope frames are known, and a split can keep each frame on
one side. Without one, only byte-identical files are held together.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvm_batch.errors import DataSetError
from cvm_batch.model.bundle import file_sha256
from cvm_batch.model.classes import CVM_CERVIX_CLASSES

TABLE_FILE = "cells.csv"
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_NEEDED = ("file", "label", "cell_id", "frame")
_KNOWN = frozenset({*_NEEDED, "nucleus_x", "nucleus_y", "width", "height"})


@dataclass(frozen=True, kw_only=True)
class LabelledCells:
    """A labelled set of n cell images. Make one with `load_cells`."""

    root: Path
    """The folder that the files lie in."""
    files: tuple[str, ...]
    """Names relative to ``root``, with forward slashes."""
    labels: NDArray[np.int64]
    """[n], positions in ``class_names``."""
    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    """[n], what must not be torn apart: the frame, or the file's digest where none is known."""
    grouped_by: str
    """What a group is, for people: ``frame`` or ``file``."""
    cell_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def regrouped(self, classes: Mapping[str, Sequence[str]]) -> LabelledCells:
        """The cells under the names of ``classes``, each of which takes in some of the data's.

        Empty ``classes`` leave all as it is. Cells of other classes are left out. Raises
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
                f"{self.root} has no cells of {', '.join(absent)}, which would be "
                f"{'; '.join(', '.join(classes[name]) for name in absent)}. It has "
                f"{', '.join(self.class_names)}. Take another recipe, or put the folders right."
            )
        kept = [place for place, name in enumerate(names) if name is not None]
        class_names = tuple(classes)
        return replace(
            self,
            files=tuple(self.files[place] for place in kept),
            labels=np.array([class_names.index(names[p] or "") for p in kept], dtype=np.int64),
            class_names=class_names,
            groups=tuple(self.groups[place] for place in kept),
            cell_ids=tuple(self.cell_ids[place] for place in kept),
        )

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.root / file for file in self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over each file's name, content and label, in the order of the names."""
        digest = hashlib.sha256()
        for file, label in sorted(zip(self.files, self.labels, strict=True)):
            line = f"{file}\0{_file_digest(self.root / file)}\0{self.class_names[label]}\n"
            digest.update(line.encode())
        return digest.hexdigest()


def load_cells(root: Path) -> LabelledCells:
    """Read the labelled set in folder ``root``. Raises DataSetError."""
    if not root.is_dir():
        raise DataSetError(
            f"No data set at {root}: give a folder with {TABLE_FILE} in it, "
            "or one with a sub-folder of images for each class."
        )
    return _from_table(root) if (root / TABLE_FILE).is_file() else _from_folders(root)


def read_tile(path: Path) -> NDArray[np.uint8]:
    """Decode one image at its own size, as uint8 RGB [h, w, 3]. Raises DataSetError."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    # Pillow's decoders raise errors of many kinds on damaged files, SyntaxError among them.
    except Exception as error:
        raise DataSetError(
            f"{path} does not decode as an image ({error}). "
            "Fetch it again, or take it out of the data set."
        ) from error


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The paper's order for its classes, then any others by name."""
    place = {name: position for position, name in enumerate(CVM_CERVIX_CLASSES)}
    return tuple(sorted(set(names), key=lambda name: (place.get(name, len(place)), name)))


def _from_table(root: Path) -> LabelledCells:
    rows = _table_rows(root / TABLE_FILE)
    if absent := [row["file"] for row in rows if not (root / row["file"]).is_file()]:
        raise DataSetError(
            f"{root / TABLE_FILE} names {len(absent)} files that are not there, the first "
            f"{absent[0]!r}. Copy the data set anew, or take their rows out of the table."
        )
    return _cells(
        root,
        files=[row["file"] for row in rows],
        names=[row["label"] for row in rows],
        groups=[row["frame"] for row in rows],
        grouped_by="frame",
        cell_ids=[row["cell_id"] for row in rows],
    )


def _table_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a cells table, each with a sound file name and no needed cell empty."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            _check_columns(table, reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataSetError(
            f"{table} cannot be read as a CSV table in UTF-8 ({error}). Write it anew."
        ) from error
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        if fault := _row_fault(row, seen):
            raise DataSetError(f"{table}, row {number}: {fault}. Put the row right.")
        seen.add(row["file"])
    return rows


def _check_columns(table: Path, columns: Sequence[str]) -> None:
    # A column that is passed over in silence may be the one that matters: a patient's
    # identity, say, which would be the group to split by.
    missing = [name for name in _NEEDED if name not in columns]
    unknown = [name for name in columns if name not in _KNOWN]
    if missing or unknown:
        raise DataSetError(
            f"{table} has the columns {', '.join(columns) or 'of an empty file'}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}. "
            f"It takes {', '.join(_NEEDED)}, and may have "
            f"{', '.join(sorted(_KNOWN.difference(_NEEDED)))}."
        )


def _row_fault(row: Mapping[str, str], seen: set[str]) -> str | None:
    if empty := [name for name in _NEEDED if not row[name]]:
        return f"nothing under {', '.join(empty)}"
    file = PurePosixPath(row["file"])
    if file.is_absolute() or ".." in file.parts:
        return f"{row['file']!r} lies outside the data set's folder"
    if row["file"] in seen:
        return f"{row['file']!r} is listed a second time"
    return None


def _from_folders(root: Path) -> LabelledCells:
    paths = sorted(
        path
        for folder in root.iterdir()
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
    )
    return _cells(
        root,
        files=[path.relative_to(root).as_posix() for path in paths],
        names=[path.parent.name for path in paths],
        # Public sets hold the same file under several names (facts: 17 times in PBC).
        groups=[_file_digest(path) for path in paths],
        grouped_by="file",
        cell_ids=[path.stem for path in paths],
    )


def _cells(
    root: Path,
    *,
    files: Sequence[str],
    names: Sequence[str],
    groups: Sequence[str],
    grouped_by: str,
    cell_ids: Sequence[str],
) -> LabelledCells:
    class_names = class_order(names)
    if len(class_names) < 2:
        raise DataSetError(
            f"{root} holds {len(files)} images of {len(class_names)} classes, and training "
            f"takes two classes at least. Give a folder with {TABLE_FILE} in it, or one with "
            "a sub-folder of images for each class."
        )
    return LabelledCells(
        root=root,
        files=tuple(files),
        labels=np.array([class_names.index(name) for name in names], dtype=np.int64),
        class_names=class_names,
        groups=tuple(groups),
        grouped_by=grouped_by,
        cell_ids=tuple(cell_ids),
    )


def _file_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataSetError(
            f"{path} cannot be read ({error.strerror}). Fetch it again, "
            "or take it out of the data set."
        ) from error
