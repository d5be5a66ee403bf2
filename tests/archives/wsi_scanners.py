"""Whole slides made for tests in the formats of scanners that store many files, without loss."""

from __future__ import annotations

import configparser
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

from tests.archives.making import encode
from tests.archives.wsi_making import MPP, pyramid

_UM_PER_MM = 1000
MIRAX_GLASS = (0xD0, 0xE0, 0xF0)
#: Number of an image, offset, size and number of the data file.
_RECORD = struct.Struct("<4i")
_RECORDS_AT = 49


def write_dicom(
    folder: Path,
    pixels: NDArray[np.uint8],
    *,
    tile: int = 64,
    levels: int = 1,
    mpp: tuple[float, float] | None = (MPP, MPP),
    series: str = "slide",
) -> Path:
    """A folder with a VL Whole Slide Microscopy instance of RGB [h, w, 3] for each level."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(pyramid(pixels, levels)):
        scale = None if mpp is None else (mpp[0] * 2**number, mpp[1] * 2**number)
        data = _instance(level, tile, scale, series, number)
        data.save_as(folder / f"{series}-{number}.dcm", enforce_file_format=True)
    return folder


def _instance(
    level: NDArray[np.uint8],
    tile: int,
    mpp: tuple[float, float] | None,
    series: str,
    number: int,
) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    data.Modality = "SM"
    # Nested values that a reader of the header alone must step over.
    data.ReferencedSeriesSequence = [_item(SeriesInstanceUID=generate_uid())]
    data.ImageType = ["DERIVED" if number else "ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    frames = list(_tiles(level, tile))
    data.DimensionOrganizationType = "TILED_FULL"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.NumberOfFrames = len(frames)
    data.Rows = data.Columns = tile
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = level.shape[:2]
    if mpp is not None:
        # Rows first: the distance between them is that along y.
        spacing = [mpp[1] / _UM_PER_MM, mpp[0] / _UM_PER_MM]
        measures = [_item(PixelSpacing=spacing)]
        data.SharedFunctionalGroupsSequence = [_item(PixelMeasuresSequence=measures)]
    data.PixelData = b"".join(frame.tobytes() for frame in frames)
    return data


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _tiles(level: NDArray[np.uint8], tile: int) -> Iterator[NDArray[np.uint8]]:
    """Row by row, filled up with black at the right and below."""
    height, width, _ = level.shape
    filled = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, 3), np.uint8)
    filled[:height, :width] = level
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield filled[top : top + tile, left : left + tile]


def write_mirax(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    tile: int = 64,
    mpp: tuple[float, float] = (MPP, MPP),
) -> Path:
    """A ``.mrxs`` and its folder, of one level.

    The sides of ``pixels`` [h, w, 3] are multiples of ``tile``. Glass is `MIRAX_GLASS`.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    slide_id = "0123456789ABCDEF"
    images = [encode(tile_pixels, ".png") for tile_pixels in _tiles(pixels, tile)]
    (folder / "Data0000.dat").write_bytes(b"".join(images))
    (folder / "Index.dat").write_bytes(_mirax_index(slide_id, images))
    height, width, _ = pixels.shape
    _write_slidedat(folder / "Slidedat.ini", slide_id, (width // tile, height // tile), tile, mpp)
    return path


def leave_out(path: Path, number: int) -> None:
    """Take an image out of the index of a ``.mrxs``, as one of glass that was not scanned."""
    file = path.with_suffix("") / "Index.dat"
    index = file.read_bytes()
    at = _RECORDS_AT + number * _RECORD.size
    count = len(index[_RECORDS_AT:]) // _RECORD.size - 1
    page = struct.pack("<2i", count, 0)
    file.write_bytes(index[: _RECORDS_AT - len(page)] + page + index[_RECORDS_AT:at])
    with file.open("ab") as rest:
        rest.write(index[at + _RECORD.size :])


def _mirax_index(slide_id: str, images: Sequence[bytes]) -> bytes:
    """Pointers to lists of pages, of which there is one, with a record for each image."""
    roots_at = len("01.02") + len(slide_id)
    list_at = roots_at + 8
    head_at = list_at + 4
    page_at = head_at + 8
    starts = accumulate((len(data) for data in images), initial=0)
    records = [
        _RECORD.pack(number, start, len(data), 0)
        for number, (start, data) in enumerate(zip(starts, images, strict=False))
    ]
    return b"".join(
        (
            b"01.02" + slide_id.encode(),
            struct.pack("<2i", list_at, 0),
            struct.pack("<i", head_at),
            struct.pack("<2i", 0, page_at),
            struct.pack("<2i", len(records), 0),
            *records,
        )
    )


def _write_slidedat(
    path: Path, slide_id: str, images: tuple[int, int], tile: int, mpp: tuple[float, float]
) -> None:
    ini = configparser.ConfigParser()
    ini.optionxform = str  # type: ignore[assignment, method-assign]
    ini["GENERAL"] = {
        "SLIDE_VERSION": "01.02",
        "SLIDE_ID": slide_id,
        "IMAGENUMBER_X": str(images[0]),
        "IMAGENUMBER_Y": str(images[1]),
        "OBJECTIVE_MAGNIFICATION": "20",
        "CameraImageDivisionsPerSide": "1",
    }
    ini["HIERARCHICAL"] = {
        "INDEXFILE": "Index.dat",
        "HIER_COUNT": "1",
        "HIER_0_NAME": "Slide zoom level",
        "HIER_0_COUNT": "1",
        "HIER_0_SECTION": "HIER_0",
        "HIER_0_VAL_0": "ZoomLevel_0",
        "HIER_0_VAL_0_SECTION": "LEVEL_0",
        "NONHIER_COUNT": "0",
    }
    ini["DATAFILE"] = {"FILE_COUNT": "1", "FILE_0": "Data0000.dat"}
    ini["LEVEL_0"] = {
        "OVERLAP_X": "0",
        "OVERLAP_Y": "0",
        "MICROMETER_PER_PIXEL_X": str(mpp[0]),
        "MICROMETER_PER_PIXEL_Y": str(mpp[1]),
        "IMAGE_FORMAT": "PNG",
        "IMAGE_FILL_COLOR_BGR": str(int.from_bytes(MIRAX_GLASS, "little")),
        "DIGITIZER_WIDTH": str(tile),
        "DIGITIZER_HEIGHT": str(tile),
        "IMAGE_CONCAT_FACTOR": "0",
    }
    with path.open("w") as file:
        ini.write(file, space_around_delimiters=False)
