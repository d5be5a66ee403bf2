"""What is known of a packed chunk of tiles, kept beside it until the slide is whole.

So a packer that was killed goes on where it was: a chunk whose record is sound, and whose
bytes have the digest that stands there, needs not be read from the slide again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cvm_batch.archives.packing.arrays import CHECKSUM_BYTES, TileLayout, tiles_column
from cvm_batch.archives.packing.files import write_whole
from cvm_batch.archives.packing.manifest import PackedFile

_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class ChunkRecord:
    """The rows of a chunk of tiles, in their order."""

    file: PackedFile
    readable: list[bool]
    padded: list[bool]
    faults: list[str]
    """What was wrong with the first few that are not readable."""
    size: list[list[int]]
    """Height and width of each."""
    xy: list[list[float]] | None
    cell_id: list[str] | None

    def to_bytes(self) -> bytes:
        body = json.dumps(asdict(self)).encode()
        return hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> ChunkRecord | None:
        """None for what a power cut left half written."""
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        value = json.loads(body)
        return cls(**value | {"file": PackedFile(**value["file"])})


@dataclass(frozen=True)
class ChunkFolder:
    """A slide that is being packed, in one layout."""

    path: Path
    layout: TileLayout

    @property
    def archive(self) -> Path:
        """What becomes the archive."""
        return self.path / "archive"

    @property
    def _records(self) -> Path:
        return self.path / "records"

    @property
    def _beside(self) -> Path:
        return self.path / "beside"

    def prepare(self) -> None:
        for folder in (self.archive / "tiles", self._records, self._beside):
            folder.mkdir(parents=True, exist_ok=True)

    def name(self, chunk: int) -> str:
        """Of a chunk's file in the archive."""
        return tiles_column(self.layout).chunk_name(chunk)

    def put(self, chunk: int, data: bytes, record: ChunkRecord) -> None:
        """The chunk first: a record tells of what is there."""
        write_whole(self.archive / self.name(chunk), data, self._beside / f"{chunk}.chunk")
        write_whole(self._record(chunk), record.to_bytes(), self._beside / f"{chunk}.record")

    def record(self, chunk: int) -> ChunkRecord | None:
        try:
            return ChunkRecord.from_bytes(self._record(chunk).read_bytes())
        except FileNotFoundError:
            return None

    def finished(self, chunk: int) -> ChunkRecord | None:
        """The record of a chunk that is there, byte for byte."""
        record = self.record(chunk)
        try:
            whole = record and describe_file((self.archive / self.name(chunk)).read_bytes())
        except FileNotFoundError:
            return None
        return record if record and record.file == whole else None

    def _record(self, chunk: int) -> Path:
        return self._records / f"{chunk}.json"


def describe_file(data: bytes, *, chunk: bool = True) -> PackedFile:
    """As the manifest has it; metadata are no ``chunk``."""
    crc32c = int.from_bytes(data[-CHECKSUM_BYTES:], "little") if chunk else None
    return PackedFile(len(data), hashlib.sha256(data).hexdigest(), crc32c)
