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


#: By the names of timm and torchvision where they have them, in the order of Table 3.
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
    "inception_resnet_v1": Compared("InceptionResNetV1", Source.OURS),
    # The paper names no size of ViT; the base one is what goes by that name.
    "vit_base_patch16_224": Compared("ViT", input_px=224),
    "botnet_50": Compared("BoTNet", Source.OURS, input_px=224),
    "deit_tiny_patch16_224": Compared("DeiT", input_px=224),
    "t2t_vit_14": Compared("T2T-ViT", Source.OURS, input_px=224),
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
