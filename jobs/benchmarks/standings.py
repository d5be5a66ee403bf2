"""How a contest is told: figures for a script, and a table for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contest import Standing
from benchmarks.contestants import EAGER_NCHW, OPENVINO
from cvm_batch.model.backends.choosing import Backend
from cvm_batch.model.precision import Precision


def rows(
    standings: Sequence[Standing],
    reference: NDArray[np.float32],
    bounds: Mapping[Precision, float],
    chosen: tuple[Backend, Precision],
) -> list[dict[str, Any]]:
    """One for each contestant, failed ones too.

    ``reference``: probabilities in fp32 of the tiles that all were compared on. ``bounds``:
    tiles a second that the device cannot pass, by precision. ``chosen``: what a long run
    would use.
    """
    eager = _speeds(standings, EAGER_NCHW, Precision.FP32)
    openvino = _speeds(standings, OPENVINO, Precision.BF16)
    return [
        {
            "contestant": standing.contestant.name,
            "precision": str(standing.contestant.precision),
            "ours": standing.contestant.backend is not None,
            "chosen": (standing.contestant.backend, standing.contestant.precision) == chosen,
            "failed": standing.failed,
            **_started(standing, reference),
            **_raced(standing, bounds.get(standing.contestant.precision)),
            "ratio_to_eager_nchw": _ratio(standing, eager),
            "ratio_to_openvino_bf16": _ratio(standing, openvino),
        }
        for standing in standings
    ]


def _started(standing: Standing, reference: NDArray[np.float32]) -> dict[str, Any]:
    start = standing.start
    if start is None:
        return {}
    return {
        "batch": start.batch,
        "lanes": start.lanes,
        "ready_seconds": start.ready_seconds,
        "first_batch_seconds": start.first_batch_seconds,
        "device_mib": start.device_mib,
        "allocated_mib": start.allocated_mib,
        "largest_difference": float(np.abs(start.probabilities - reference).max()),
        "same_class": float((start.probabilities.argmax(1) == reference.argmax(1)).mean()),
    }


def _raced(standing: Standing, bound: float | None) -> dict[str, Any]:
    if not standing.turns:
        return {}
    speeds = [turn.tiles_per_second for turn in standing.turns]
    return {
        "tiles_per_second": median(speeds),
        "tiles_per_second_by_round": speeds,
        "share_of_roofline": median(speeds) / bound if bound else None,
        "peak_mib": standing.turns[-1].peak_mib,
    }


def _speeds(standings: Sequence[Standing], name: str, precision: Precision) -> list[float]:
    """By round; empty where that contestant did not take part."""
    return [
        turn.tiles_per_second
        for standing in standings
        if (standing.contestant.name, standing.contestant.precision) == (name, precision)
        for turn in standing.turns
    ]


def _ratio(standing: Standing, others: Sequence[float]) -> float | None:
    """The median over rounds: what disturbs a round disturbs both."""
    rounds = zip(standing.turns, others, strict=False)  # whoever fails has fewer
    ratios = [turn.tiles_per_second / other for turn, other in rounds]
    return median(ratios) if ratios else None


Row = Mapping[str, Any]


def _number(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _batch(row: Row) -> str:
    if "batch" not in row:
        return "-"
    return f"{row['batch']}x{row['lanes']}" if row["lanes"] > 1 else str(row["batch"])


def _range(row: Row) -> str:
    speeds = row.get("tiles_per_second_by_round")
    if not speeds:
        return "-"
    digits = 1 if max(speeds) < 100 else 0
    return f"{min(speeds):,.{digits}f}-{max(speeds):,.{digits}f}"


def _memory(row: Row) -> str:
    value = row.get("device_mib") or row.get("peak_mib")
    return f"{value:,.0f}" if value else "-"


def _share(row: Row, name: str) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:.0%}"


def _tiny(row: Row, name: str) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:.0e}"


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("contestant", lambda row: f"{'*' if row['chosen'] else ' '} {row['contestant']}"),
    ("type", lambda row: row["precision"]),
    ("batch", _batch),
    ("tiles/s", lambda row: "failed" if row["failed"] else _number(row, "tiles_per_second")),
    ("min-max", _range),
    ("x NCHW", lambda row: _number(row, "ratio_to_eager_nchw")),
    ("x OV", lambda row: _number(row, "ratio_to_openvino_bf16")),
    ("first", lambda row: _number(row, "first_batch_seconds")),
    ("ready", lambda row: _number(row, "ready_seconds")),
    ("MiB", _memory),
    ("roof", lambda row: _share(row, "share_of_roofline")),
    ("diff", lambda row: _tiny(row, "largest_difference")),
    ("same", lambda row: _share(row, "same_class")),
)
_LEGEND = """\
* what a long run chooses here. batch: tiles at once, x batches under way. tiles/s: the median of
the rounds. x NCHW, x OV: ratio to eager NCHW in fp32 and to OpenVINO in bf16, the median of the
rounds. first: seconds of the first batch. ready: seconds from the start of the process. MiB: peak
memory of the process; on a GPU, what it takes of the GPU's. roof: share of the roofline. diff,
same: largest difference of a probability and share of equal classes, on 64 tiles, against fp32."""


def table(rows: Sequence[Row]) -> str:
    """Lines of at most 120 characters."""
    cells = [[title for title, _ in _COLUMNS]]
    cells += [[show(row) for _, show in _COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    failed = [
        f"{row['contestant']} {row['precision']} failed: {row['failed']}"
        for row in rows
        if row["failed"]
    ]
    return "\n".join([*lines, *failed, "", _LEGEND])
