"""A night for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_batch.model.bundle import Bundle
from tests.faults.night import Night


@pytest.fixture
def night(tmp_path: Path, tiny_bundle: Bundle) -> Night:
    return Night(tmp_path, tiny_bundle)
