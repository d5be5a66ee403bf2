"""The columns of the result tables. README.md says what each one means."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

#: Part of the result key: raise it when a column changes its meaning.
SCHEMA_VERSION = 2


class Status(StrEnum):
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    FAILED = "failed"


class Adequacy(StrEnum):
    """Whether a slide holds enough cells to be judged; never changes the status."""

    ADEQUATE = "adequate"
    SCANT = "scant"
    NOT_ASSESSED = "not_assessed"


_COUNTS = pa.map_(pa.string(), pa.int64())
#: Names that repeat.
NAMES = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("us", tz="UTC")

SLIDES = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("slide_identity", pa.string()),
        pa.field("result_key", pa.string()),
        pa.field("bundle", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string(), nullable=False),
        pa.field("priority", pa.int32(), nullable=False),
        pa.field("preparation", pa.string()),
        pa.field("listed", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("cells_expected", pa.int64()),
        pa.field("expected_from", pa.string()),
        pa.field("cells_classified", pa.int64()),
        pa.field("cells_unreadable", pa.int64()),
        pa.field("integrity", pa.string()),
        pa.field("class_counts", _COUNTS),
        pa.field("group_counts", _COUNTS),
        pa.field("primary_group", pa.string()),
        pa.field("abnormal_count", pa.int64()),
        pa.field("abnormal_fraction", pa.float64()),
        pa.field("counts_at_least", _COUNTS),
        pa.field("group_counts_at_least", _COUNTS),
        pa.field("slide_score", pa.float64()),
        pa.field("top_classes", _COUNTS),
        pa.field("adequacy", pa.string(), nullable=False),
        pa.field("confidence_mean", pa.float64()),
        pa.field("brightness_mean", pa.float64()),
        pa.field("brightness_std", pa.float64()),
        pa.field("focus_mean", pa.float64()),
        pa.field("cells_files", pa.list_(pa.string()), nullable=False),
        pa.field("tops_files", pa.list_(pa.string()), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("started_at", _TIME, nullable=False),
        pa.field("finished_at", _TIME, nullable=False),
        pa.field("precision", pa.string(), nullable=False),
        pa.field("backend", pa.string()),
        pa.field("versions", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)

_CELL = [
    # Not `NAMES`, as it once was: of a column with a dictionary, Arrow takes no notice of
    # what row groups hold, and reads every one to find one slide. The file has one all the same.
    pa.field("slide_id", pa.string(), nullable=False),
    pa.field("index", pa.int64(), nullable=False),
    pa.field("cell_id", pa.string()),
    pa.field("x", pa.float64()),
    pa.field("y", pa.float64()),
    pa.field("padded", pa.bool_(), nullable=False),
    pa.field("class", NAMES, nullable=False),
    pa.field("confidence", pa.float32(), nullable=False),
    pa.field("p_primary", pa.float32()),
]


def cells_schema(classes: int) -> pa.Schema:
    """One row per classified cell; ``probabilities`` follows the bundle's class order."""
    return pa.schema(
        [*_CELL, pa.field("probabilities", pa.list_(pa.float32(), classes), nullable=False)]
    )


#: Cells of bundles with any number of classes, as they are read.
CELLS = pa.schema([*_CELL, pa.field("probabilities", pa.list_(pa.float32()), nullable=False)])

#: The most suspicious cells of a part, with the tile as a PNG file.
TOPS = pa.schema([*_CELL, pa.field("png", pa.binary(), nullable=False)])
