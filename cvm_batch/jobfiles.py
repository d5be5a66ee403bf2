"""Where the jobs' scripts lie (docs/decisions/0002), and the bundle that came along with one."""

from __future__ import annotations

from pathlib import Path

#: A bundle that was shipped: relative, since each process of the job starts in its own node's
#: copy of what was, which need not have the same path on all of them.
SHIPPED_BUNDLE = "shipped-bundle"
_PACKAGE = Path(__file__).parent


def jobs_folder() -> Path:
    """Beside the package in a checkout, inside it where it is installed."""
    beside = _PACKAGE.parent / "jobs"
    return beside if (beside / "screen.py").is_file() else _PACKAGE / "jobs"


def job_file(name: str) -> Path:
    """A job's script; ``name`` is ``screen.py`` and the like."""
    return jobs_folder() / name
