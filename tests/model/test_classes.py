from __future__ import annotations

from cvm_batch.model.classes import (
    CERVICAL_GROUPS,
    CVM_CERVIX_CLASSES,
    PRIMARY_GROUP,
    cervical_groups,
)


def test_papers_five_are_its_classes_1_3_4_7_and_8() -> None:
    five = {CVM_CERVIX_CLASSES[number - 1] for number in (1, 3, 4, 7, 8)}
    assert set(CERVICAL_GROUPS["paper_abnormal"]) == five


def test_thresholds_are_nested() -> None:
    hsil, lsil, asc_us = (
        set(CERVICAL_GROUPS[group]) for group in ("hsil_plus", "lsil_plus", "asc_us_plus")
    )
    assert hsil == {"HSIL", "SCC"}
    assert lsil - hsil == {"ASC-H", "LSIL", "Koilocytotic", "Dyskeratotic"}
    assert asc_us - lsil == {"ASC-US"}
    assert PRIMARY_GROUP == "asc_us_plus"


def test_groups_of_all_classes_are_the_groups() -> None:
    assert cervical_groups(CVM_CERVIX_CLASSES) == dict(CERVICAL_GROUPS)


def test_groups_of_fewer_classes_name_only_those() -> None:
    assert cervical_groups(["NILM", "ASC-US"]) == {"asc_us_plus": ("ASC-US",)}
    assert cervical_groups(["Normal", "Abnormal"]) == {}
