"""The paper's own figures, to stand beside those of its recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PaperFigures:
    """Shares of the paper's CVM-Cervix on its test set; macro averages."""

    where: str
    precision: float
    recall: float
    f1: float
    accuracy: float


#: By what a recipe's name says it is trained on.
_TEST: Mapping[str, PaperFigures] = {
    "combined11-4x": PaperFigures("section 4.7.2", 0.936, 0.935, 0.935, 0.9348),
    "combined11": PaperFigures("Table 3", 0.918, 0.916, 0.917, 0.9172),
    "herlev2": PaperFigures("section 4.7.3", 0.889, 0.935, 0.907, 0.9235),
    "pbc8": PaperFigures("section 4.7.4", 0.987, 0.984, 0.985, 0.9848),
}


def paper_figures(recipe: Mapping[str, Any]) -> PaperFigures | None:
    """What the paper reports on the data of a recipe, where it has such."""
    name = str(recipe.get("name", ""))
    return next((found for ending, found in _TEST.items() if name.endswith(ending)), None)
