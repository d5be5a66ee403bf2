"""Names that tell nothing of a patient: a slide's name, digested under the laboratory's key.

Only who holds the key can tell which slide a pseudonym stands for, by digesting the names that
are known. Without a key, anybody could: accession numbers are few enough to try them all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from cvm_batch.errors import UsageError

KEY_VARIABLE = "CVM_BATCH_PSEUDONYM_KEY"
KEY_FILE_VARIABLE = "CVM_BATCH_PSEUDONYM_KEY_FILE"
_LEAST_KEY_BYTES = 16
_DIGITS = 16


class Pseudonyms:
    """Slides' pseudonyms under one key."""

    def __init__(self, key: bytes) -> None:
        """Raises UsageError where the key is short enough to be guessed."""
        if len(key) < _LEAST_KEY_BYTES:
            raise UsageError(
                f"The key for pseudonyms has {len(key)} bytes; give at least {_LEAST_KEY_BYTES} "
                "random ones, such as `openssl rand -hex 32` prints."
            )
        self._key = key

    @classmethod
    def from_environment(cls) -> Pseudonyms | None:
        """With the key in, or in the file named by, the environment; None where there is none.

        Raises UsageError.
        """
        if key := os.environ.get(KEY_VARIABLE):
            return cls(os.fsencode(key))
        if file := os.environ.get(KEY_FILE_VARIABLE):
            try:
                return cls(Path(file).read_bytes().strip())
            except OSError as error:
                raise UsageError(
                    f"The file that {KEY_FILE_VARIABLE} names cannot be read: {error.strerror}."
                ) from error
        return None

    @classmethod
    def required(cls) -> Pseudonyms:
        """The same, where nothing can be done without. Raises UsageError."""
        if (found := cls.from_environment()) is None:
            raise UsageError(
                f"Pseudonyms need a key: set {KEY_VARIABLE}, or {KEY_FILE_VARIABLE} to a file "
                "with it."
            )
        return found

    def digest(self, slide_id: str) -> str:
        """HMAC-SHA256 of the slide's name, 64 hexadecimal digits."""
        return hmac.new(self._key, as_bytes(slide_id), hashlib.sha256).hexdigest()

    def of(self, slide_id: str) -> str:
        """``slide-`` and the digest's first 16 digits."""
        return f"slide-{self.digest(slide_id)[:_DIGITS]}"


def as_bytes(slide_id: str) -> bytes:
    return slide_id.encode("utf-8", "surrogateescape")
