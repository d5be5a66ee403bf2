"""Which networks Table 3 compares, as data. Loads neither PyTorch nor timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


class Source(Enum):
    """Whose implementation it is."""

    TIMM = auto()
    TORCHVISION = auto()
    OURS = auto()


@dataclass(frozen=True)
class Compared:
    """A network of the comparison."""

    title: str
    """As Table 3 writes it."""
    source: Source = Source.TIMM
    input_px: int | None = None
    """The side that it takes where ``img_size`` sets no other; None where it takes any."""


#: By the name that timm or torchvision gives them, in the order of Table 3.
COMPARED: Mapping[str, Compared] = {
    "vgg11": Compared("VGG11"),
    "vgg13": Compared("VGG13"),
    "vgg16": Compared("VGG16"),
    "vgg19": Compared("VGG19"),
    "resnet18": Compared("ResNet18"),
    "resnet34": Compared("ResNet34"),
    "resnet50": Compared("ResNet50"),
    "resnet101": Compared("ResNet101"),
    "densenet121": Compared("DenseNet121"),
    "densenet169": Compared("DenseNet169"),
    "inception_v3": Compared("InceptionV3"),
    "legacy_xception": Compared("Xception"),
    "alexnet": Compared("AlexNet", Source.TORCHVISION),
    "googlenet": Compared("GoogLeNet", Source.TORCHVISION),
    "mobilenetv2_100": Compared("MobileNetV2"),
    "shufflenet_v2_x1_0": Compared("ShuffleNetV2 x1.0", Source.TORCHVISION),
    "shufflenet_v2_x0_5": Compared("ShuffleNetV2 x0.5", Source.TORCHVISION),
    # The paper names no size of ViT: the base of its authors, in DeiT's patches of 16 px.
    "vit_base_patch16_224": Compared("ViT", input_px=224),
    "deit_tiny_patch16_224": Compared("DeiT", input_px=224),
}


def input_px(name: str, args: Mapping[str, Any]) -> int | None:
    """The side in pixels that a network takes; None where it takes any.

    Of a network outside the comparison timm is asked, and loaded for it.
    """
    known = COMPARED.get(name)
    fixed = known.input_px if known else _fixed_by_timm(name)
    return int(args.get("img_size", fixed)) if fixed else None


def _fixed_by_timm(name: str) -> int | None:
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(name)
    return int(found.input_size[-1]) if found and found.fixed_input_size else None
