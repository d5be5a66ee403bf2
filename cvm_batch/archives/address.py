"""Where one slide lies, and what is known of it from outside: a manifest or a sidecar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SlideAddress:
    """All that is needed to open a slide again, on any node."""

    uri: str
    """Absolute path, or URL (``s3://``, ``gs://``, ``az://``, ``https://``)."""
    cells_uri: str | None = None
    """The cells table, where it does not lie beside the slide under the usual name."""
    sha256: str | None = None
    """Recorded digest, 64 lower-case hex digits: of the file, or of a packed folder's manifest."""
    cells_expected: int | None = None
    """Number of cells that the slide should have, counted elsewhere."""
