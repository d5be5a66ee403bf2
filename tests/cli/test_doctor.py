"""What the doctor sees, and what it calls bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cvm_batch.cli import cli
from cvm_batch.machine import nvidia_driver, usable_memory
from cvm_batch.model.bundle import Bundle


def seen(*arguments: object) -> dict[str, dict[str, str]]:
    result = CliRunner().invoke(cli, ["doctor", "--json", *map(str, arguments)])
    return {finding["what"]: finding for finding in json.loads(result.output)}


def test_a_machine_that_is_fit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    found = seen("--model", tiny_bundle.path, "--out", tmp_path / "results")
    assert found["bundle"]["verdict"] == "fine"
    assert tiny_bundle.digest[:12] in found["bundle"]["found"]
    assert found["results"]["verdict"] == "fine"
    assert {"versions", "CPUs", "memory", "shared memory", f"disk at {tmp_path / 'results'}"} <= (
        found.keys()
    )


def test_what_is_wrong_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = seen(
        *("--model", tmp_path / "none", "--out", tmp_path / "file" / "results"),
        *("--address", "http://127.0.0.1:9"),
    )
    bad = {what for what, finding in found.items() if finding["verdict"] == "bad"}
    assert bad >= {"bundle", "results", "cluster"}


@pytest.mark.parametrize(
    ("limit", "expected"), [("1073741824", 2**30), ("max", 8 * 2**30), ("9" * 18, 8 * 2**30)]
)
def test_a_containers_memory_counts(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "meminfo").write_text("MemTotal:        8388608 kB\nMemFree: 1 kB\n")
    assert usable_memory(tmp_path, tmp_path / "meminfo") == expected


def test_the_drivers_version(tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    )
    assert nvidia_driver(version) == "580.65.06"
    assert nvidia_driver(tmp_path / "none") is None
