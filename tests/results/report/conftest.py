"""A report of a real night, and one of real cells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.report.writing import write_report
from tests.results.nights import Night

KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="session")
def reported(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the first run of `night`, with a slide of every kind. Do not change it."""
    results = shutil.copytree(night.results, tmp_path_factory.mktemp("reported") / "results")
    write_report(results, night.first_run)
    return results / "reports" / night.first_run


@pytest.fixture
def pseudonyms() -> Pseudonyms:
    return Pseudonyms(KEY)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def files_of(report: Path) -> dict[str, bytes]:
    """Every file of a report by its path."""
    return {
        path.relative_to(report).as_posix(): path.read_bytes()
        for path in sorted(report.rglob("*"))
        if path.is_file()
    }
