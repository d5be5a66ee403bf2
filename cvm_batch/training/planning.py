"""What a training was planned on: the cells, and the side that each of them is on.

Whoever reads the data anew (a resumed training, a worker on another node, a trial) splits
them again, and a changed ``frame`` column or order of rows gives another split of the same
cells: a training would go on with cells in it that are held back.
"""

from __future__ import annotations

import hashlib

from cvm_batch.errors import DataSetError
from cvm_batch.training.datasets import LabelledCells
from cvm_batch.training.splits import Split


def plan_digest(cells: LabelledCells, split: Split) -> str:
    """SHA-256 over the cells' digest and, in the order of their names, their groups and sides."""
    rows = sorted(
        (cells.images[at].name, cells.groups[at], side)
        for side, positions in split.sides().items()
        for at in positions
    )
    text = cells.digest + "\n" + "".join("\0".join(row) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def check_as_planned(cells: LabelledCells, split: Split, planned: str) -> None:
    """Raises DataSetError where the digest of these is not ``planned``."""
    if (found := plan_digest(cells, split)) != planned:
        raise DataSetError(
            f"{cells.where} holds other cells here than when the training was planned, or "
            f"splits them otherwise (digest {found[:12]}, planned {planned[:12]}). Give every "
            "node the same data, and the command again if the data have changed."
        )
