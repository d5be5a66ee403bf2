"""What tests of a replica's parts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_batch.results.folder import ResultsFolder


@pytest.fixture
def results(tmp_path: Path) -> ResultsFolder:
    folder = ResultsFolder(tmp_path)
    folder.prepare()
    return folder
