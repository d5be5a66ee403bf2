"""The paper's own figures, to stand beside those of its recipes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cvm_batch.model.classes import CVM_CERVIX_CLASSES


@dataclass(frozen=True)
class PaperFigures:
    """Shares of the paper's CVM-Cervix on one side of its split; macro averages."""

    where: str
    precision: float
    recall: float
    f1: float
    accuracy: float
    classes: frozenset[str]


_COMBINED = frozenset(CVM_CERVIX_CLASSES)
_HERLEV = frozenset({"Abnormal", "Normal"})
_BLOOD = frozenset(
    {
        *("basophil", "eosinophil", "erythroblast", "ig"),
        *("lymphocyte", "monocyte", "neutrophil", "platelet"),
    }
)
#: By what a recipe's name says it is trained on, and the side.
_FIGURES: Mapping[str, Mapping[str, PaperFigures]] = {
    "combined11-4x": {
        "test": PaperFigures("section 4.7.2", 0.936, 0.935, 0.935, 0.9348, _COMBINED),
    },
    "combined11": {
        "test": PaperFigures("Table 3", 0.918, 0.916, 0.917, 0.9172, _COMBINED),
        "validation": PaperFigures("Fig. 5", 0.928, 0.929, 0.928, 0.9287, _COMBINED),
    },
    "herlev2": {
        "test": PaperFigures("section 4.7.3", 0.889, 0.935, 0.907, 0.9235, _HERLEV),
        "validation": PaperFigures("Fig. 9", 0.964, 0.951, 0.958, 0.9672, _HERLEV),
    },
    "pbc8": {
        "test": PaperFigures("section 4.7.4", 0.987, 0.984, 0.985, 0.9848, _BLOOD),
        "validation": PaperFigures("Fig. 11", 0.99, 0.989, 0.989, 0.9889, _BLOOD),
    },
}


def paper_figures(
    recipe: Mapping[str, Any], class_names: Collection[str], side: str
) -> PaperFigures | None:
    """What the paper reports on one side of the data of a recipe, where it has such.

    None beside other classes than the paper's, and beside cells of no ``side`` of a training.
    """
    name = str(recipe.get("name", ""))
    sides = next((sides for ending, sides in _FIGURES.items() if name.endswith(ending)), {})
    found = sides.get(side)
    return found if found is not None and found.classes == set(class_names) else None


#: Table 3 by our names of the models: macro precision, recall, F1, and accuracy.
TABLE_3: Mapping[str, tuple[float, float, float, float]] = {
    "vgg11": (0.848, 0.839, 0.84, 0.8406),
    "vgg13": (0.853, 0.847, 0.844, 0.8462),
    "vgg16": (0.798, 0.799, 0.796, 0.7997),
    "vgg19": (0.786, 0.783, 0.782, 0.7838),
    "resnet18": (0.884, 0.883, 0.882, 0.8825),
    "resnet34": (0.88, 0.881, 0.879, 0.8803),
    "resnet50": (0.876, 0.876, 0.873, 0.8757),
    "resnet101": (0.865, 0.864, 0.863, 0.8638),
    "densenet121": (0.879, 0.878, 0.877, 0.8786),
    "densenet169": (0.892, 0.889, 0.887, 0.8899),
    "inception_v3": (0.854, 0.849, 0.848, 0.8496),
    "legacy_xception": (0.877, 0.877, 0.876, 0.8769),
    "alexnet": (0.862, 0.862, 0.861, 0.861),
    "googlenet": (0.876, 0.872, 0.871, 0.8729),
    "mobilenetv2_100": (0.849, 0.846, 0.846, 0.8462),
    "shufflenet_v2_x1_0": (0.855, 0.843, 0.845, 0.8457),
    "shufflenet_v2_x0_5": (0.826, 0.826, 0.825, 0.8264),
    "inception_resnet_v1": (0.852, 0.849, 0.849, 0.8496),
    "vit_base_patch16_224": (0.861, 0.86, 0.857, 0.8587),
    "botnet_50": (0.661, 0.655, 0.639, 0.6551),
    "deit_tiny_patch16_224": (0.874, 0.874, 0.872, 0.8735),
    "t2t_vit_14": (0.856, 0.853, 0.852, 0.8519),
    "cvm-cervix": (0.918, 0.916, 0.917, 0.9172),
}
