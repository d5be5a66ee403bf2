"""Bundles known by name: those shipped in the package, and a folder of one's own."""

from __future__ import annotations

import os
from pathlib import Path

from cvm_batch.errors import BundleError, BundleNotFoundError
from cvm_batch.model.bundle import SPEC_FILE, Bundle, load_bundle

#: Environment variable naming a folder whose sub-folders are bundles.
MODELS_VARIABLE = "CVM_BATCH_MODELS"
_SHIPPED = Path(__file__).parent.parent / "assets" / "bundles"


def known_bundles() -> dict[str, Path]:
    """Folder of each bundle by name; one's own wins over a shipped one of that name."""
    folders = [_SHIPPED]
    if own := os.environ.get(MODELS_VARIABLE):
        folders.append(Path(own))
    return {
        spec.parent.name: spec.parent
        for folder in folders
        for spec in sorted(folder.glob(f"*/{SPEC_FILE}"))
    }


def list_bundles() -> list[tuple[str, Path, Bundle | BundleError]]:
    """Name, folder, and the verified bundle or what is wrong with it, by name."""
    listed: list[tuple[str, Path, Bundle | BundleError]] = []
    for name, path in sorted(known_bundles().items()):
        try:
            listed.append((name, path, load_bundle(path)))
        except BundleError as error:
            listed.append((name, path, error))
    return listed


def find_bundle(name_or_path: str) -> Bundle:
    """Load and verify the bundle of that path or name. Raises BundleError."""
    path = Path(name_or_path)
    if (path / SPEC_FILE).is_file():
        return load_bundle(path)
    known = known_bundles()
    if name_or_path in known:
        return load_bundle(known[name_or_path])
    raise BundleNotFoundError(
        f"No bundle called or at {name_or_path!r}. Known by name: {', '.join(sorted(known))}. "
        f"Give a folder with {SPEC_FILE} in it, or set {MODELS_VARIABLE} to a folder of bundles."
    )
