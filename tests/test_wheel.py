"""What the wheel holds. CVM_BATCH_WHEEL names one that was built already."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from cvm_batch import __version__

ROOT = Path(__file__).parent.parent
DIST_INFO = f"cvm_batch-{__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("CVM_BATCH_WHEEL"):
        return Path(built)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def content(wheel: Path) -> dict[str, str]:
    """Text of the files in .dist-info; names alone of the others."""
    with ZipFile(wheel) as archive:
        return {
            name: archive.read(name).decode() if name.startswith(DIST_INFO) else ""
            for name in archive.namelist()
        }


@pytest.fixture(scope="module")
def metadata(content: dict[str, str]) -> Message:
    return Parser().parsestr(content[f"{DIST_INFO}/METADATA"])


def files_below(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_is_for_every_platform(wheel: Path) -> None:
    assert wheel.name == f"cvm_batch-{__version__}-py3-none-any.whl"


def test_holds_the_package_with_its_assets_and_the_jobs(content: dict[str, str]) -> None:
    jobs = {f"cvm_batch/{path}" for path in files_below("jobs")}
    packed = {name for name in content if not name.startswith(DIST_INFO)}
    assert packed == files_below("cvm_batch") | jobs
    assert {"cvm_batch/py.typed", "cvm_batch/jobs/benchmark.py"} <= packed


def test_nothing_else_is_put_into_site_packages(content: dict[str, str]) -> None:
    # A package called "jobs" there would collide with somebody else's.
    assert {name.partition("/")[0] for name in content} == {"cvm_batch", DIST_INFO}


def test_carries_its_licence(content: dict[str, str], metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert content[f"{DIST_INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_text()


def test_offers_the_command(content: dict[str, str]) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(content[f"{DIST_INFO}/entry_points.txt"])
    assert dict(entry_points["console_scripts"]) == {"cvm-batch": "cvm_batch.cli:main"}


def test_declares_what_pyproject_declares(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    unconditional = {str(one) for one in declared if one.marker is None}
    assert unconditional == {str(Requirement(line)) for line in project["dependencies"]}
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["Version"] == __version__
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
