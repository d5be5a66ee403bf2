"""A folder of images for each class: any such set, and SIPaKMeD and Herlev as published.

DIR/<class>/*.jpg
DIR/im_Dyskeratotic/CROPPED/001_01.bmp      SIPaKMeD: cluster image 001, its first cell
DIR/carcinoma_in_situ/149143370-149143378-001.BMP, ...-001-d.bmp (its segmentation)  Herlev
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets.labelled import BY_FILE, ImageFile, LabelledCells, labelled

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_SIPAKMED = re.compile(r"im_(?P<label>[A-Za-z-]+)")
_CROPPED = "CROPPED"
#: Of cells, as the set's own folders of cluster images lie beside CROPPED.
_SIPAKMED_CELL = re.compile(r"(?P<cluster>\d+)_\d+")
_HERLEV_FOLDERS = frozenset(
    {
        "carcinoma_in_situ",
        "light_dysplastic",
        "moderate_dysplastic",
        "normal_columnar",
        "normal_intermediate",
        "normal_superficiel",
        "severe_dysplastic",
    }
)
_HERLEV_CELL = re.compile(r"(?P<image>.+)-\d+")


def load(root: Path) -> LabelledCells:
    """Raises DataSetError."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if any(_SIPAKMED.fullmatch(folder.name) for folder in folders):
        return _sipakmed(root, folders)
    if 2 * sum(folder.name in _HERLEV_FOLDERS for folder in folders) > len(folders):
        return _herlev(root, folders)
    return _classes(root, folders)


def _classes(root: Path, folders: list[Path]) -> LabelledCells:
    images, skipped = [], list(_empty(root, folders))
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(ImageFile(root, name))
        else:
            skipped.append((name, "a folder in a class" if path.is_dir() else "no image"))
    return labelled(
        str(root),
        images,
        [image.path.parent.name for image in images],
        [image.name for image in images],
        grouped_by=BY_FILE,
        cell_ids=[image.path.stem for image in images],
        skipped=skipped,
    )


def _herlev(root: Path, folders: list[Path]) -> LabelledCells:
    """Cells of one smear image share the first parts of their names."""
    known = [folder for folder in folders if folder.name in _HERLEV_FOLDERS]
    others = [folder for folder in folders if folder not in known]
    empty = {name for name, _ in _empty(root, others)}
    if odd := [folder.name for folder in others if folder.name not in empty]:
        raise DataSetError(
            f"{root} has Herlev's folders, and images in others: {', '.join(odd)}. Move those "
            "away; or, if they are classes, rename the folders that are called as Herlev's."
        )
    skipped = [*_empty(root, known), *((name, "no folder of a Herlev class") for name in empty)]
    cells = []
    for path in (path for folder in known for path in sorted(folder.iterdir())):
        name = path.relative_to(root).as_posix()
        found = _HERLEV_CELL.fullmatch(path.stem)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append((name, "no image"))
        elif path.stem.endswith("-d"):
            skipped.append((name, "a segmentation, not a cell"))
        else:
            cells.append((ImageFile(root, name), found["image"] if found else path.stem))
    return labelled(
        str(root),
        [image for image, _ in cells],
        [image.path.parent.name for image, _ in cells],
        [group for _, group in cells],
        grouped_by="smear image",
        cell_ids=[image.path.stem for image, _ in cells],
        skipped=skipped,
    )


def _sipakmed(root: Path, folders: list[Path]) -> LabelledCells:
    cells, skipped = [], list[tuple[str, str]]()
    for folder in folders:
        match = _SIPAKMED.fullmatch(folder.name)
        if match is None:
            skipped.append((folder.name, "no folder of a SIPaKMeD class"))
            continue
        crops = list(_cropped(folder))
        if not crops:
            skipped.append((folder.name, f"no {_CROPPED} images in it"))
        for path in crops:
            name = path.relative_to(root).as_posix()
            cell = _SIPAKMED_CELL.fullmatch(path.stem)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                skipped.append((name, "no image"))
            elif cell is None:
                skipped.append((name, "its name says no cluster image"))
            else:
                cells.append((ImageFile(root, name), match["label"], cell["cluster"]))
    return labelled(
        str(root),
        [image for image, _, _ in cells],
        [label for _, label, _ in cells],
        # Cluster images are numbered anew in each class.
        [f"{label}/{cluster}" for _, label, cluster in cells],
        grouped_by="cluster image",
        cell_ids=[f"{label}/{image.path.stem}" for image, label, _ in cells],
        skipped=skipped,
    )


def _cropped(folder: Path) -> Iterator[Path]:
    """The crops of a class; the published archives hold each class folder within itself."""
    for inner in (folder, folder / folder.name):
        if (inner / _CROPPED).is_dir():
            yield from sorted((inner / _CROPPED).iterdir())
            return


def _empty(root: Path, folders: list[Path]) -> Iterator[tuple[str, str]]:
    """Class folders that hold no image: a copy that broke off, or no class at all."""
    for folder in folders:
        if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()):
            yield folder.relative_to(root).as_posix(), "a class folder without images"
