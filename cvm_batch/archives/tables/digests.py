"""Recorded digests, as ``sha256sum`` writes them."""

from __future__ import annotations

import re

from cvm_batch.errors import BadFormatError, UnsafeArchiveError

#: Two spaces, or a space and the star of binary mode, lie between digest and name.
_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")


def parse_digests(data: bytes, where: object) -> dict[str, str]:
    """SHA-256 by name, relative to the folder of the file itself.

    Raises BadFormatError, or UnsafeArchiveError for a name that leads out of that folder.
    """
    digests: dict[str, str] = {}
    text = data.decode("utf-8", "surrogateescape")
    # Not splitlines, which ends lines at characters that names may hold.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line.removesuffix("\r"))
        if match is None:
            raise BadFormatError(
                f"Line {number} of {where} is not a SHA-256 and a name, as sha256sum writes "
                "them. Write the file anew."
            )
        escaped, digest, name = match.groups()
        if escaped:
            name = re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], name)
        name = name.removeprefix("./")
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise UnsafeArchiveError(
                f"Line {number} of {where} names {name!r}, outside of the slide's folder. Run "
                "sha256sum inside that folder, with relative names."
            )
        if digests.setdefault(name, digest.lower()) != digest.lower():
            raise BadFormatError(f"{where} records two digests of {name!r}. Write it anew.")
    return digests
