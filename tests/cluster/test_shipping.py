"""What a job takes along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvm_batch.cluster import shipping
from cvm_batch.cluster.shipping import shipped
from cvm_batch.errors import ClusterError
from cvm_batch.jobfiles import SHIPPED_BUNDLE
from cvm_batch.model.bundle import Bundle, load_bundle


def test_nothing_unless_asked() -> None:
    with shipped() as environment:
        assert environment == {}


def test_a_bundle_lies_where_the_job_starts(tiny_bundle: Bundle) -> None:
    with shipped(bundle=tiny_bundle.path) as environment:
        folder = Path(environment["working_dir"])
        assert load_bundle(folder / SHIPPED_BUNDLE).digest == tiny_bundle.digest
    assert not folder.exists()


def test_the_code_runs_where_there_is_none(tmp_path: Path) -> None:
    with shipped(code=True) as environment:
        (package,) = environment["py_modules"]
        where = Path(package).parent
        script = "import cvm_batch; from cvm_batch.jobfiles import job_file as f"
        script += "; print(cvm_batch.__file__, f('screen.py').is_file())"
        told = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(where)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert told == [str(Path(package, "__init__.py")), "True"]


def test_what_ray_would_refuse_is_refused(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "_MOST_BYTES", 1000)
    with pytest.raises(ClusterError, match="fp16"), shipped(bundle=tiny_bundle.path):
        pass
