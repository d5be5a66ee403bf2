"""Data sets known by their digest: where they come from, and under which licence."""

from __future__ import annotations

_CRIC = (
    "CRIC Cervix: Rezende, M. T. et al., Cric searchable image database as a public platform "
    "for conventional pap smear cytology data, Scientific Data 8:151 (2021), "
    "doi 10.6084/m9.figshare.c.4960286.v2, licence CC BY 4.0. "
    "Changed: 3,923 single cells cropped around the nucleus at 100 px."
)

_HERLEV = (
    "Herlev: Jantzen, J. et al., Pap-smear benchmark data for pattern classification, 2005; for "
    "research."
)
_PBC = (
    "Peripheral blood cells: Acevedo, A. et al., A dataset of microscopic peripheral blood cell "
    "images for development of automatic recognition systems, Data in Brief 30:105474 (2020), "
    "doi 10.17632/snkd93bnjr.1, licence CC BY 4.0. "
    "Changed: 13,677 of the images, resampled to 224 px."
)

#: By the digest of the files and labels, not by folder name: nobody else's cells shall
#: be published under this name and licence.
_SOURCES = {
    "de3ea0cd70c3e5acbcbe2bfcc0257cd37a01135cdaa41f42ba3690c265542d4c": _CRIC,
    "8826c42b0d11ae642756661f75b02314e4baf77ef89abec9d5247259cc286085": _HERLEV,
    "9a09fdf48b59cbf57b3eaebb2bbc66560feb8b67176adc5669144256ebd40c74": _PBC,
}


def source_of(digest: str) -> str | None:
    """Source and licence of the data set with that digest, or None where not known."""
    return _SOURCES.get(digest)
