"""The files of a whole slide, looked at before OpenSlide reads them.

It opens a file that was cut short in copying, and of a folder with several DICOM series
it takes the one that it is pointed at. Neither may pass as the slide that the cells were
found in.
"""

from __future__ import annotations

from pathlib import Path

from cvm_batch.archives.places.files import reading
from cvm_batch.archives.wsi import tiff_extent
from cvm_batch.archives.wsi.dicom_extent import DICOM_MARK, DICOM_MARK_AT, series_of
from cvm_batch.errors import BadFormatError


def is_dicom(name: str) -> bool:
    return name.lower().endswith(".dcm")


def main_file(path: Path) -> Path:
    """What of a slide OpenSlide is to be given: of a folder of DICOM files the first.

    Raises BadFormatError, OverLimitError, ReadError or InputChangedError.
    """
    if not path.is_dir():
        _series(path)
        return path
    with reading(path):
        files = sorted(file for file in path.iterdir() if is_dicom(file.name))
    series = {_series(file) for file in files}
    if len(series) != 1:
        raise BadFormatError(
            f"{path} holds DICOM files of {len(series)} series, and nothing says in which of them "
            "its cells lie. Give each slide a folder of its own."
        )
    return files[0]


def _series(path: Path) -> str | None:
    """The DICOM series of a file, if it has one. Raises SlideError where it is cut short."""
    with reading(path), path.open("rb") as file:
        head = file.read(DICOM_MARK_AT + len(DICOM_MARK))
        if head.startswith(tiff_extent.TIFF_MARKS):
            if tiff_extent.is_whole(file):
                return None
        elif head[DICOM_MARK_AT:] != DICOM_MARK:
            return None
        elif series := series_of(file):
            return series
    raise BadFormatError(
        f"{path} ends before the pixels do that its header speaks of. It was cut short: copy it "
        "again."
    )
