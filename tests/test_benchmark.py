"""`jobs/benchmark.py`: what it measures, and that the engine's part needs little installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from cvm_batch.cpus import usable_cpus
from cvm_batch.model.architecture import CVM_CERVIX
from cvm_batch.model.backends.choosing import Backend, openvino_installed
from cvm_batch.model.bundle import Bundle, reference_probabilities
from cvm_batch.model.network import tile_gflop
from cvm_batch.model.precision import Precision, choose_precision
from cvm_batch.results.reading import Results
from cvm_batch.results.verifying import verify_results
from cvm_batch.results.worklist import Worklist
from tests.conftest import CLASSES, coloured_tiles

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "jobs"))

from benchmarks.contest import Stage, contest  # noqa: E402
from benchmarks.contestants import Contestant, Ready, contestants  # noqa: E402
from benchmarks.engine import engine  # noqa: E402
from benchmarks.query import query  # noqa: E402
from benchmarks.rooflines import bound, kernels_of, published_peaks  # noqa: E402
from benchmarks.standings import table  # noqa: E402

CPU = torch.device("cpu")
SCRIPT = str(ROOT / "jobs" / "benchmark.py")
#: What a bare GPU machine lacks, and with onnxruntime a peer.
MISSING = ("ray", "zarr", "openslide", "numcodecs", "pyarrow", "simplejpeg", "onnxruntime")
#: Python imports it at the start of every process, the contestants' too.
SITECUSTOMIZE = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {MISSING!r}:
            return super().find_spec(name, path, target)

sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def run_bare(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Python without those packages."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    environment = os.environ | {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> dict[str, Any]:
    """Ours in fp32, where nothing has to be compiled, a peer, and one that cannot run."""
    names = ("torch-eager", "cvm-batch openvino", "eager NCHW", "ONNX")
    only = [word for name in names for word in ("--only", name)]
    short = ["--precision", "fp32", "--rounds", "1", "--seconds", "0.2", "--json"]
    arguments = [SCRIPT, "engine", "--model", str(tiny_bundle.path), *only, *short]
    done = run_bare(tmp_path_factory.mktemp("bare"), arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(figures: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in figures["contestants"] if one["contestant"] == name)
    return dict(found)


@pytest.mark.parametrize("package", MISSING)
def test_the_bare_machine_is_bare(tmp_path: Path, package: str) -> None:
    assert "ModuleNotFoundError" in run_bare(tmp_path, ["-c", f"import {package}"]).stderr


def test_help_needs_none_of_them(tmp_path: Path) -> None:
    done = run_bare(tmp_path, [SCRIPT, "--help"])
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("end-to-end", "engine", "query", "archives"))


def test_every_backend_and_precision_takes_part() -> None:
    ours = [(one.backend, one.precision) for one in contestants(CPU) if one.backend]
    assert ours == list(product(Backend, (Precision.FP32, Precision.BF16)))
    on_gpu = [one for one in contestants(torch.device("cuda")) if one.backend]
    assert [(one.backend, one.precision) for one in on_gpu] == list(
        product((Backend.EAGER, Backend.COMPILED), Precision)
    )


@pytest.mark.parametrize("backend", [Backend.EAGER, Backend.OPENVINO])
def test_what_is_measured(figures: dict[str, Any], backend: Backend) -> None:
    if backend is Backend.OPENVINO and not openvino_installed():
        pytest.skip("needs openvino")
    found = row(figures, f"cvm-batch {backend}")
    assert found["failed"] is None
    assert found["ours"]
    assert found["same_class"] == 1.0
    assert found["largest_difference"] <= Precision.FP32.tolerance
    assert (found["lanes"], found["batch"]) == (usable_cpus(), 8)
    for name in (
        "tiles_per_second",
        "ratio_to_eager_nchw",
        "first_batch_seconds",
        "ready_seconds",
        "peak_mib",
        "share_of_roofline",
    ):
        assert found[name] > 0, name


def test_ratios_are_to_the_peer(figures: dict[str, Any]) -> None:
    peer = row(figures, "eager NCHW")
    assert peer["ratio_to_eager_nchw"] == 1
    ours = row(figures, "cvm-batch torch-eager")
    ratio = ours["tiles_per_second"] / peer["tiles_per_second"]
    assert ours["ratio_to_eager_nchw"] == pytest.approx(ratio)
    assert ours["ratio_to_openvino_bf16"] is None


def test_one_of_ours_is_what_a_run_chooses(figures: dict[str, Any]) -> None:
    best = Backend.OPENVINO if openvino_installed() else Backend.EAGER
    chosen = [one["contestant"] for one in figures["contestants"] if one["chosen"]]
    assert chosen == [f"cvm-batch {best}"]


def test_who_fails_is_listed_with_the_reason(figures: dict[str, Any]) -> None:
    failed = row(figures, "ONNX Runtime")
    assert failed["failed"] == "the package onnxruntime is not installed"
    assert "tiles_per_second" not in failed
    assert "ONNX Runtime fp32 failed: the package onnx" in table(figures["contestants"])


def test_the_table_fits_a_terminal(figures: dict[str, Any]) -> None:
    large = {"tiles_per_second_by_round": [12_345.6, 16_789.1], "batch": 1024, "lanes": 2}
    rows = [{**one, "peak_mib": 12_345.6, **large} for one in figures["contestants"]]
    assert max(map(len, table(rows).splitlines())) <= 120


def test_nobody_of_that_name_is_an_error() -> None:
    done = CliRunner().invoke(engine, ["--only", "nobody"])
    assert done.exit_code == 2
    assert "eager NCHW fp32" in done.stderr


def is_killed(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def runs_out(bundle: Bundle, precision: Precision, device: torch.device) -> Ready:
    """In its second turn, after the first batch and the comparison."""
    calls = count()

    def classify(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("no more of it\nsecond line")
        return np.zeros((len(tiles), CLASSES), np.float32)

    return Ready(classify, batch=16)


def test_others_go_on_where_one_dies(tmp_path: Path, tiny_bundle: Bundle) -> None:
    np.save(tmp_path / "tiles.npy", coloured_tiles(range(CLASSES)))
    taking_part = [
        Contestant("killed", Precision.FP32, is_killed),
        Contestant("out of memory", Precision.FP32, runs_out),
    ]
    stage = Stage(tiny_bundle.path, tmp_path / "tiles.npy", tmp_path, CPU, seconds=1e-3)
    killed, later = contest(taking_part, stage, 3, tell=lambda text: None, each_round=lambda: None)
    assert killed.failed == "its process ended by itself, exit code -9"
    assert later.failed == "OutOfMemoryError: no more of it"
    assert len(later.turns) == 1


#: Compiling takes half a minute, and the network is that of eager channels-last.
PEERS = [one for one in contestants(CPU) if one.backend is None and "compile" not in one.name]


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_peers_compute_the_same(peer: Contestant, tiny_bundle: Bundle) -> None:
    try:
        ready = peer.set_up(tiny_bundle, peer.precision, CPU)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    classes = np.arange(2 * ready.batch) % CLASSES
    tiles = coloured_tiles(classes)
    found = ready.classify(tiles)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.argmax(axis=1), classes)
    expected = reference_probabilities(tiny_bundle.network(), tiny_bundle.spec.preprocessing, tiles)
    np.testing.assert_allclose(found, expected, atol=0.05)


# Rooflines


def test_arithmetic_is_that_of_the_network() -> None:
    kernels = kernels_of(CVM_CERVIX, CLASSES, 224)
    counted = sum(kernel.flop for kernel in kernels) / 1e9
    assert counted == pytest.approx(tile_gflop(CVM_CERVIX, CLASSES, 224))


def test_bound_of_a_known_gpu() -> None:
    # Worked out by hand beforehand: 33,000 tiles/s, or 68,000 if memory were infinitely fast.
    peaks = published_peaks("NVIDIA H200", [Precision.BF16])
    kernels = kernels_of(CVM_CERVIX, CLASSES, 224)
    assert bound(kernels, peaks[Precision.BF16], Precision.BF16) == pytest.approx(33_000, rel=0.05)


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.0e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA A100-SXM4-40GB", 1.555e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("NVIDIA L4", 0.3e12),
        ("NVIDIA L40S", 0.864e12),
        ("Tesla T4", 0.32e12),
    ],
)
def test_gpus_are_known_by_name(name: str, bandwidth: float) -> None:
    peaks = published_peaks(name, [Precision.FP16])
    assert peaks[Precision.FP16].bandwidth == pytest.approx(bandwidth)


def test_other_gpus_have_no_roofline() -> None:
    assert not published_peaks("NVIDIA A10G", [Precision.FP16])


# End to end


def test_end_to_end(tmp_path: Path, tiny_bundle: Bundle) -> None:
    options = ["--tiles", "60", "--slides", "2", "--slides", "5", "--executor", "local", "--json"]
    command = [sys.executable, SCRIPT, "end-to-end", "--model", str(tiny_bundle.path), *options]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["backend"], found["precision"]) == ("torch-eager", choose_precision(CPU.type))
    for run in ("2 x zarr", "5 x zarr", "2 x jpeg", "5 x jpeg"):
        before, after = found[f"{run}: engine_before_and_after"]
        speed = found[f"{run}: end_to_end_tiles_per_second"]
        assert found[f"{run}: share_of_engine"] == pytest.approx(2 * speed / (before + after))


def test_made_up_results_are_like_real_ones(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    asked = ["--slides", "45", "--cells", "2000", "--rounds", "1", "--keep", str(folder), "--json"]
    ended = CliRunner().invoke(query, asked)
    assert ended.exit_code == 0, ended.output
    figures = json.loads(ended.output)
    assert 0 < figures["open, Worklist.read, s"] < figures["command worklist, s"]
    found = verify_results(folder)
    assert found.findings == ()
    assert (found.runs, found.slides) == (1, 45)
    assert 0 < found.cells <= 2000
    with Results(folder) as results:
        worklist = Worklist.read(results)
        (tops,) = results.query("SELECT max(length(png::VARCHAR)) AS n FROM tops")["n"].to_pylist()
    assert tops > 100
    assert len(worklist.entries) == 45
    assert worklist.quality_control
    assert 0 < sum(entry.negative for entry in worklist.ranked) < len(worklist.ranked)
