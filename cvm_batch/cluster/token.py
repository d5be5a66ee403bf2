"""The cluster's token, from where Ray looks for it too."""

from __future__ import annotations

import os
from pathlib import Path

from cvm_batch.errors import ClusterError

_OWN = Path(".ray", "auth_token")


def read_token() -> str | None:
    """From RAY_AUTH_TOKEN, the file in RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token, in this order.

    Raises ClusterError where a file that was named cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / _OWN
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError) as error:
        if named is None:
            return None
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ClusterError(
            f"The token cannot be read from {path}, which RAY_AUTH_TOKEN_PATH names: {why}."
        ) from error
