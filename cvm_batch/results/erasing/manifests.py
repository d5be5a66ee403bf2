"""Takes a slide's name out of a run's manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from cvm_batch.results.layout import slide_stem

#: What stands in a manifest where it said the slide's name.
_REMOVED = "(an erased slide)"
#: Parts of a manifest that tell in words what happened.
_TOLD = ("error", "replicas_lost", "ignored")


def without_slide(manifest: Mapping[str, Any], slide_id: str, uris: set[str]) -> dict[str, Any]:
    """The manifest, with no word of the slide. ``uris``: where it was read."""
    settings = dict(manifest["settings"])
    settings["inputs"] = [
        one for one in settings["inputs"] if not _names(_shown(one), slide_id, uris)
    ]
    if "priorities" in settings:  # as of later versions
        settings["priorities"] = [
            [pattern, priority]
            for pattern, priority in settings["priorities"]
            # A pattern may be as good as a name.
            if pattern != slide_id and not fnmatchcase(slide_id, pattern)
        ]
    names = [rf"(?<![\w.-]){re.escape(one)}(?![\w-])" for one in _spellings(uris, slide_id)]
    name = re.compile("|".join([*names, slide_stem(slide_id)]))

    def scrub(value: Any) -> Any:
        if isinstance(value, str):
            return name.sub(_REMOVED, value)
        if isinstance(value, list):
            return [scrub(one) for one in value]
        if isinstance(value, dict):
            return {key: scrub(one) for key, one in value.items()}
        return value

    told = {key: scrub(manifest[key]) for key in _TOLD if key in manifest}
    return {**manifest, "settings": settings, **told}


def _spellings(uris: set[str], slide_id: str) -> list[str]:
    """How a message may name the slide, the longest first."""
    names = {*uris, slide_id}
    return sorted(names | {repr(name)[1:-1] for name in names}, key=len, reverse=True)


def _names(given: str, slide_id: str, uris: set[str]) -> bool:
    """Whether an input that a submit was given is this slide, not a folder that it lies in."""
    given = given.rstrip("/")
    if given in uris:
        return True
    above = any(f"/{given}/".replace("//", "/") in f"/{uri}" for uri in uris)
    return PurePosixPath(given).name == slide_id and not above


def _shown(name: str) -> str:
    """As rows and messages show a name that is no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
