"""Damaged: nothing but the names: one stem in two folders, Unicode, newlines, great length.

Expected: each slide has an identity of its own, ``complete``, exit code 0; a true collision
is an error that names both, exit code 2.
"""

from __future__ import annotations

import pytest

from cvm_batch.errors import ExitCode, SlideIdCollisionError
from cvm_batch.results.schemas import Status
from tests.archives.making import write_zip
from tests.faults.night import CELLS, Night, slide_of

NAMES = [
    "a/slide.zip",
    "b/slide.zip",
    "Probe ä.zip",
    "細胞.zip",
    "zwei\nZeilen.zip",
    "y" * 240 + ".zip",
]


def test_every_name_is_a_slide(night: Night) -> None:
    for number, name in enumerate(NAMES):
        write_zip(night.slides / name, slide_of(seed=number).tiles)
    found = night.submit()
    assert found.exit_code is ExitCode.COMPLETE
    assert set(found.rows) == {*NAMES, "neighbour.zip"}
    assert {row["status"] for row in found.rows.values()} == {Status.COMPLETE}
    assert {sum(row["class_counts"].values()) for row in found.rows.values()} == {CELLS}
    assert len({row["slide_identity"] for row in found.rows.values()}) == len(found.rows)


def test_true_collision_names_both(night: Night) -> None:
    for name in NAMES[:2]:
        write_zip(night.slides / name, slide_of().tiles)
    with pytest.raises(SlideIdCollisionError) as caught:
        night.submit(night.slides / "a", night.slides / "b")
    assert all(str(night.slides / name) in str(caught.value) for name in NAMES[:2])
    assert caught.value.exit_code is ExitCode.USAGE
