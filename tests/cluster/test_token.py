"""Where the token comes from, and that it is not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_batch.cluster.token import read_token
from cvm_batch.errors import ClusterError


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_in_the_order_that_ray_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("own\n")
    assert read_token() == "own"
    (tmp_path / "named").write_text("named\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert read_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "environment")
    assert read_token() == "environment"


def test_a_file_that_is_named_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH"):
        read_token()
