"""Training and comparing, handed over to a real cluster from outside."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cvm_batch.model.bundle import load_bundle
from tests.cluster.real import TokenCluster
from tests.training.conftest import CLASS_NAMES, write_cells

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]


def test_two_workers_of_a_cluster_train_a_bundle(cluster: TokenCluster, tmp_path: Path) -> None:
    data, out = write_cells(tmp_path / "data"), tmp_path / "out" / "mine"
    out.parent.mkdir()
    ended = cluster.run(
        *("train", "--data", data, "--recipe", "smoke", "--out", out, "--no-report"),
        *("--workers", 2, "--address", cluster.address),
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "epoch 2/2: loss" in ended.stdout, "the job's log was followed"
    assert sorted(load_bundle(out).spec.class_names) == sorted(CLASS_NAMES)
    assert cluster.run("verify", out).returncode == 0


def test_a_comparison_on_a_cluster_ends_with_its_table(
    cluster: TokenCluster, tmp_path: Path
) -> None:
    data, out = write_cells(tmp_path / "data"), tmp_path / "out" / "study"
    out.parent.mkdir()
    ended = cluster.run(
        *("compare", "--data", data, "--models", "shufflenet_v2_x0_5,resnet18"),
        *("--recipe", "smoke", "--set", "preprocessing.input_px=64", "--epochs", 1),
        *("--out", out, "--at-once", 2, "--address", cluster.address),
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"shufflenet_v2_x0_5", "resnet18"}
    listed = json.loads(cluster.run("list", "--address", cluster.address, "--json").stdout)
    (job,) = [one for one in listed if "-compare-" in one["submission_id"]]
    assert job["state"] == "succeeded"


def test_data_that_the_nodes_do_not_see(cluster: TokenCluster, tmp_path: Path) -> None:
    ended = cluster.run(
        *("train", "--data", tmp_path / "nowhere", "--recipe", "smoke", "--workers", 2),
        *("--out", tmp_path / "mine", "--address", cluster.address),
    )
    assert ended.returncode == 2
    assert f"no {tmp_path / 'nowhere'}" in ended.stdout + ended.stderr
