"""Data sets known by their digest: where they come from, and under which licence."""

from __future__ import annotations

_CRIC = (
    "CRIC Cervix: Rezende, M. T. et al., Cric searchable image database as a public platform "
    "for conventional pap smear cytology data, Scientific Data 8:151 (2021), "
    "doi 10.6084/m9.figshare.c.4960286.v2, licence CC BY 4.0. "
    "Changed: 3,923 single cells cropped around the nucleus at 100 px."
)

#: By the digest of the files and labels, not by folder name: nobody else's cells shall
#: be published under this name and licence.
_SOURCES = {"de3ea0cd70c3e5acbcbe2bfcc0257cd37a01135cdaa41f42ba3690c265542d4c": _CRIC}


def source_of(digest: str) -> str | None:
    """Source and licence of the data set with that digest, or None where not known."""
    return _SOURCES.get(digest)
