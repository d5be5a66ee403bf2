"""Names of the files in the results folder, and of runs."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath


@dataclass(frozen=True)
class RunName:
    """A run's identifier and the date partition that its files lie in (UTC)."""

    run_id: str
    run_date: str

    @classmethod
    def new(cls, now: datetime) -> RunName:
        """``20260131T220000Z-1a2b3c4d``: sorts by time, and two at once still differ.

        The four digits ``1a2b`` count 65,536ths of the second: short runs begin within one.
        """
        utc = now.astimezone(UTC)
        part = utc.microsecond * 0x10000 // 1_000_000
        return cls(f"{utc:%Y%m%dT%H%M%SZ}-{part:04x}{secrets.token_hex(2)}", f"{utc:%Y-%m-%d}")

    @classmethod
    def of(cls, run_id: str) -> RunName:
        """The name of an earlier run."""
        return cls(run_id, f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}")

    @property
    def manifest(self) -> PurePosixPath:
        return PurePosixPath("runs", f"{self.run_id}.json")

    @property
    def live(self) -> PurePosixPath:
        """Where the run stands, while it runs."""
        return PurePosixPath("runs", f"{self.run_id}.live")

    @property
    def stop_marker(self) -> PurePosixPath:
        """Whoever makes this file wants the run to stop."""
        return PurePosixPath("runs", f"{self.run_id}.stop")

    def priority_marker(self, number: int) -> PurePosixPath:
        """Whoever makes this file wants some slides to go earlier or later."""
        return PurePosixPath("runs", f"{self.run_id}-{number:03d}.priority")

    def report_folder(self, *, pseudonyms: bool = False) -> PurePosixPath:
        """Where people read of the run; a report with pseudonyms lies beside the other."""
        return PurePosixPath("reports", f"{self.run_id}-pseudonyms" if pseudonyms else self.run_id)

    @property
    def slides_folder(self) -> PurePosixPath:
        return PurePosixPath("slides", f"run_date={self.run_date}")

    @property
    def cells_folder(self) -> PurePosixPath:
        return PurePosixPath("cells", f"run_date={self.run_date}", self.run_id)

    @property
    def tops_folder(self) -> PurePosixPath:
        return PurePosixPath("tops", f"run_date={self.run_date}", self.run_id)

    def slides_batch(self, number: int) -> PurePosixPath:
        return self.slides_folder / f"{self.run_id}-{number:05d}.parquet"


def lease_file(lease: int, number: int) -> str:
    """Name of the ``number``-th file of what a lease's parts hold. It says nothing of the slides,
    whose names may be a patient's."""
    return f"lease-{lease:08d}-{number:03d}.parquet"


def slide_stem(slide_id: str) -> str:
    """What files of one slide are called by; a slide_id may hold what no file name can."""
    return hashlib.sha256(slide_id.encode("utf-8", "surrogateescape")).hexdigest()[:16]
