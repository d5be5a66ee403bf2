"""Connections to object storage, with fsspec's clients.

Credentials come from the environment only. Each request is made once: who makes it asks again.
"""

from __future__ import annotations

from typing import Any

import fsspec  # type: ignore[import-untyped]

#: Listings are never remembered: what another wrote a moment ago must be seen.
_FRESH = {"skip_instance_cache": True, "use_listings_cache": False}


def s3_client(answer_s: float) -> Any:
    """Amazon S3, and what speaks like it. ``answer_s``: seconds until the next byte."""
    limits = {"connect_timeout": answer_s, "read_timeout": answer_s}
    fs = fsspec.filesystem(
        "s3",
        config_kwargs={**limits, "retries": {"max_attempts": 0}},
        max_concurrency=1,  # with more it asks for the length of an object before it reads it
        **_FRESH,
    )
    fs.retries = 1
    return fs


def google_client(answer_s: float) -> Any:
    return fsspec.filesystem("gs", requests_timeout=3 * answer_s, **_FRESH)


def azure_client() -> Any:
    """The account comes from the environment as well."""
    return fsspec.filesystem("az", **_FRESH)
