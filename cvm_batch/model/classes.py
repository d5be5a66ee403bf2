"""Class names and the groups of them that a laboratory counts.

The paper's 11 classes join two vocabularies: six Bethesda classes of CRIC and five of
SIPaKMeD. Its own "abnormal" leaves out ASC-US and LSIL, which a laboratory counts as
abnormal; hence named groups side by side, never one undocumented number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: The paper's classes in its order (Table 1).
CVM_CERVIX_CLASSES = (
    "ASC-H",
    "ASC-US",
    "SCC",
    "HSIL",
    "LSIL",
    "NILM",
    "Dyskeratotic",
    "Koilocytotic",
    "Metaplastic",
    "Parabasal",
    "Superficial-Intermediate",
)

_HSIL_PLUS = ("HSIL", "SCC")
_LSIL_PLUS = (*_HSIL_PLUS, "ASC-H", "LSIL", "Koilocytotic", "Dyskeratotic")
CERVICAL_GROUPS: Mapping[str, tuple[str, ...]] = {
    "asc_us_plus": (*_LSIL_PLUS, "ASC-US"),
    "lsil_plus": _LSIL_PLUS,
    "hsil_plus": _HSIL_PLUS,
    "paper_abnormal": ("ASC-H", "SCC", "HSIL", "Dyskeratotic", "Koilocytotic"),
}
PRIMARY_GROUP = "asc_us_plus"


def cervical_groups(class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The cervical groups restricted to ``class_names``; empty groups are left out."""
    known = set(class_names)
    groups = {
        group: tuple(name for name in members if name in known)
        for group, members in CERVICAL_GROUPS.items()
    }
    return {group: members for group, members in groups.items() if members}
