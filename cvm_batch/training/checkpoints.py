"""Checkpoints of a training: the last two. Each holds the weights of the best epoch so far too.

    FOLDER/epoch-0007-<16 hex digits>.pt

The name carries the digest of the content, so that a truncated or damaged file is known for
what it is, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cvm_batch.errors import RunAbortedError

KEPT = 2
_NAME = re.compile(r"epoch-(\d+)-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """Of one training; make the folder's name carry the recipe's and the data's digests."""

    folder: Path

    def save(self, state: dict[str, Any], epoch: int) -> Path:
        """Write ``state`` after epoch number ``epoch``; it appears whole or not at all.

        Raises RunAbortedError where the folder cannot be written to.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        path = self.folder / f"epoch-{epoch:04d}-{_digest(content)}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # What a process left that was killed while it wrote; one writes at a time.
            for torn in self.folder.glob(".epoch-*.tmp"):
                torn.unlink(missing_ok=True)
            _write_whole(path, content)
            # One of an epoch that is gone over again is the older of the two.
            again = [old for old in self.paths() if _epoch(old) >= epoch and old != path]
            for old in again + [old for old in self.paths() if old not in again][:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise RunAbortedError(
                f"The checkpoint {path} cannot be written ({error.strerror}). Make room, or name "
                "another folder; the same command then goes on from the checkpoint before."
            ) from error
        return path

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The newest state that is whole; None where there is none.

        Damaged ones are removed, or they would count among those that are kept.
        """
        for path in reversed(self.paths()):
            content = path.read_bytes()
            match = _NAME.fullmatch(path.name)
            if match and _digest(content) != match[2]:
                path.unlink(missing_ok=True)
            else:
                # Tensors and plain values alone: nothing in it can run.
                state: dict[str, Any] = torch.load(
                    io.BytesIO(content), map_location=device, weights_only=True
                )
                return state
        return None

    def paths(self) -> list[Path]:
        """Whatever is called like a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))


def _write_whole(path: Path, content: bytes) -> None:
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with building.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    building.replace(path)


def _epoch(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
