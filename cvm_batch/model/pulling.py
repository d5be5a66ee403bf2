"""A bundle from elsewhere: an archive at an address, verified before it is believed."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec  # type: ignore[import-untyped]

from cvm_batch.errors import BundleDigestError, BundleError
from cvm_batch.model.bundle import SPEC_FILE, Bundle, load_bundle

#: A full-size bundle in fp32 has 130 MB; whoever sends more wants to fill the disk.
_MOST_BYTES = 4 * 2**30
_CHUNK = 2**20


@contextmanager
def pulled(url: str, sha256: str) -> Iterator[Bundle]:
    """The bundle in the tar or zip archive at ``url`` (a path, http(s), s3, gs, az).

    In a folder that is gone afterwards. ``sha256`` is of the archive, 64 hex digits. Raises
    BundleError where it cannot be fetched, is not what the digest says, or holds no bundle.
    """
    with TemporaryDirectory(prefix="cvm-batch-pull-") as name:
        folder = Path(name)
        archive = folder / "archive"
        _fetch(url, archive, sha256.lower())
        unpacked = folder / "unpacked"
        _unpack(archive, unpacked, url)
        specs = sorted(unpacked.rglob(SPEC_FILE))
        if len(specs) != 1:
            raise BundleError(
                f"{url} holds {len(specs)} bundles ({SPEC_FILE} files), and one is wanted. Pack "
                "the folder of one bundle."
            )
        yield load_bundle(specs[0].parent)


def _fetch(url: str, path: Path, sha256: str) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with fsspec.open(url, "rb") as source, path.open("wb") as target:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > _MOST_BYTES:
                    raise BundleError(f"{url} has more than {_MOST_BYTES >> 30} GiB: no bundle.")
                digest.update(chunk)
                target.write(chunk)
    except BundleError:
        raise
    except Exception as error:  # every store of fsspec's raises errors of its own
        raise BundleError(
            f"{url} cannot be fetched ({type(error).__name__}: {error}). Check the address and "
            "the credentials; for http(s), s3, gs and az install cvm-batch with that extra."
        ) from error
    if digest.hexdigest() != sha256:
        raise BundleDigestError(
            f"{url} has SHA-256 {digest.hexdigest()}, and {sha256} was given: it is another "
            "file, or was damaged or exchanged on its way. Nothing was registered."
        )


def _unpack(archive: Path, folder: Path, url: str) -> None:
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")  # neither links outside nor devices
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)  # noqa: S202 - zipfile keeps names inside the folder
        else:
            raise BundleError(f"{url} is neither a tar nor a zip archive: pack the bundle so.")
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BundleError(f"{url} cannot be unpacked ({error}). Pack the bundle anew.") from error
