"""Damaged: nothing; the slide carries a patient's name in its label image and properties.

Expected: ``complete``, exit code 0; the label is never opened, and no file of the results
holds any of it.
"""

from __future__ import annotations

import openslide
import pytest

from cvm_batch.errors import ExitCode
from cvm_batch.results.schemas import Status
from tests.archives.making import write_table
from tests.archives.wsi_making import write_svs
from tests.faults.night import Expected, Night, slide_of

PATIENT = "Mustermann^Erika 1964-08-12"


def test_patient_s_name(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an associated image was opened")

    path = write_svs(
        night.slides / "slide.svs", slide_of().tiles.reshape(-1, 40, 3), patient=PATIENT
    )
    assert PATIENT.encode() in path.read_bytes()
    write_table(
        night.slides / "slide.cells.csv",
        {
            "x": [20] * 12,
            "y": [20 + 40 * n for n in range(12)],
            "width": [40] * 12,
            "height": [40] * 12,
        },
    )
    with openslide.OpenSlide(path) as slide:
        assert any(PATIENT in value for value in slide.properties.values())
        assert "label" in slide.associated_images
    monkeypatch.setattr(openslide._AssociatedImageMap, "__getitem__", refuse)
    night.submit().assert_ends("slide.svs", Expected(Status.COMPLETE, None, ExitCode.COMPLETE))
    for file in night.results.rglob("*"):
        if file.is_file():
            assert b"Mustermann" not in file.read_bytes()
