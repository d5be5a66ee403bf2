"""What is measured, and on which machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.reporting import made_tiles
from cvm_batch.cpus import usable_cpus
from cvm_batch.model.architecture import CVM_CERVIX, Architecture, Backbone, Fusion
from cvm_batch.model.bundle import Bundle, BundleSpec, write_bundle
from cvm_batch.model.classes import CVM_CERVIX_CLASSES, PRIMARY_GROUP, cervical_groups
from cvm_batch.model.precision import Precision
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.model.registry import find_bundle


def bundle_to_measure(model: str | None, folder: Path) -> Bundle:
    """The bundle of that path or name; by default a new one in ``folder``, of full size and
    with random weights: speed does not depend on them."""
    if model is not None:
        return find_bundle(model)
    return _random_bundle(folder / "bundle", "cvm-cervix (random weights)", CVM_CERVIX, 224)


def smallest_bundle(folder: Path) -> Bundle:
    """A new bundle in ``folder`` for what is measured around the network: 0.4 M random weights,
    input of 32 px."""
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    architecture = Fusion(
        cnn=Backbone(name="test_resnet"),
        vt=Backbone(name="deit_tiny_patch16_224", args=sizes),
        hidden=64,
    )
    return _random_bundle(folder / "bundle", "smallest (random weights)", architecture, 32)


def _random_bundle(path: Path, name: str, architecture: Architecture, side: int) -> Bundle:
    torch.manual_seed(0)
    spec = BundleSpec(
        name=name,
        architecture=architecture,
        preprocessing=Preprocessing(input_px=side),
        class_names=CVM_CERVIX_CLASSES,
        groups=cervical_groups(CVM_CERVIX_CLASSES),
        primary_group=PRIMARY_GROUP,
        precision=Precision.FP16,
    )
    network = architecture.build(len(CVM_CERVIX_CLASSES))
    return write_bundle(path, spec, network, made_tiles(8, None), card="# Random weights")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {usable_cpus()} CPUs"


def versions(*packages: str) -> dict[str, str | None]:
    """Of each package; None where it is not installed."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """As the CPU calls itself, which on ARM it does not."""
    lines = cpuinfo.read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
