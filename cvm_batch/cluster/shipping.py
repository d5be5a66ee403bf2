"""What a job takes along to nodes that lack it, as Ray's runtime environment carries it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cvm_batch.errors import ClusterError
from cvm_batch.jobfiles import SHIPPED_BUNDLE, jobs_folder

#: Ray takes no more than 500 MiB in one package.
_MOST_BYTES = 500 * 2**20
_NEVER = shutil.ignore_patterns("__pycache__", ".*")


@contextmanager
def shipped(*, bundle: Path | None = None, code: bool = False) -> Iterator[dict[str, Any]]:
    """A runtime environment with a bundle's folder, and with this installation's own code.

    The code is the package as a wheel holds it, without what it requires, so that the nodes'
    image brings the libraries. To be submitted while the context lasts. Raises ClusterError.
    """
    with TemporaryDirectory(prefix="cvm-batch-") as staging:
        environment: dict[str, Any] = {}
        if bundle is not None:
            folder = Path(staging, "work")
            shutil.copytree(bundle, folder / SHIPPED_BUNDLE, ignore=_NEVER)
            environment["working_dir"] = str(_small_enough(folder))
        if code:
            package = Path(staging, "code", "cvm_batch")
            shutil.copytree(Path(__file__).parent.parent, package, ignore=_NEVER)
            shutil.copytree(jobs_folder(), package / "jobs", ignore=_NEVER, dirs_exist_ok=True)
            environment["py_modules"] = [str(_small_enough(package))]
        yield environment


def _small_enough(folder: Path) -> Path:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > _MOST_BYTES:
        raise ClusterError(
            f"{size / 2**20:,.0f} MiB are too much to ship with a job: Ray takes "
            f"{_MOST_BYTES // 2**20}. Put the bundle where every node sees it, or export it in "
            "fp16 (`cvm-batch export`)."
        )
    return folder
