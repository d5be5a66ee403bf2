"""What a lease's parts hold is written several parts to a file, and told part by part."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.errors import ReadError, Reason
from cvm_batch.results.cells import PartFiles
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.screening import finishing as finishing_module
from cvm_batch.screening.finishing import Finishing
from cvm_batch.screening.tally import PartTally
from cvm_batch.screening.work import Part, SlideSource
from tests.screening.test_tally import CLASSES, RUN, probabilities, readable

LEASE = 7


@pytest.fixture
def finishing(results: ResultsFolder) -> Iterator[Finishing]:
    with ThreadPoolExecutor(2) as pool:
        yield Finishing(LEASE, PartFiles(results, RUN, CLASSES), pool)


def counted(slide: int, tiles: int = 5, start: int = 0) -> PartTally:
    """A part of which all tiles are counted."""
    source = SlideSource(slide, f"slide-{slide}", SlideAddress(uri=f"/slides/{slide}"), "id")
    part = PartTally(Part(source, start, start + tiles), len(CLASSES), primary=[0, 1])
    index = np.arange(start, start + tiles, dtype=np.int64)
    part.add(readable(index), probabilities(np.linspace(0, 1, tiles)))
    return part


def test_parts_of_many_slides_share_their_files(
    finishing: Finishing, results: ResultsFolder
) -> None:
    parts = [counted(slide, tiles=slide + 3) for slide in range(4)]
    for part in parts:
        finishing.add(part)
        finishing.add(part)  # harmless
    found = finishing.outcomes()
    assert {outcome.cells_file for outcome in found.values()} == {
        f"cells/run_date=2026-01-31/{RUN.run_id}/lease-00000007-000.parquet"
    }
    (tops_file,) = {outcome.tops_file for outcome in found.values()}
    for name in (found[parts[0]].cells_file, tops_file):
        assert name is not None
        with pq.ParquetFile(results.root / name) as file:
            slides = [file.read_row_group(n)["slide_id"].unique().to_pylist() for n in range(4)]
        assert slides == [["slide-0"], ["slide-1"], ["slide-2"], ["slide-3"]]
    for part in parts:
        assert found[part].classified == len(part.part)


def test_two_parts_of_one_slide_never_share_a_file(finishing: Finishing) -> None:
    first, between, second = counted(1), counted(2), counted(1, start=5)
    for part in (first, between, second):
        finishing.add(part)
    found = finishing.outcomes()
    assert found[first].cells_file == found[between].cells_file != found[second].cells_file


def test_a_file_is_cut_where_enough_waits(
    finishing: Finishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing_module, "_FILE_BYTES", 2 * counted(0).held_bytes)
    parts = [counted(slide) for slide in range(5)]
    for part in parts:
        finishing.add(part)
    found = finishing.outcomes()
    numbers = [str(found[part].cells_file)[-11:-8] for part in parts]
    assert numbers == ["000", "000", "001", "001", "002"]


def test_what_failed_names_no_file(finishing: Finishing) -> None:
    sound, failed = counted(1), counted(2)
    failed.fail(ReadError("It went away."))
    for part in (sound, failed):
        finishing.add(part)
    found = finishing.outcomes()
    assert found[sound].cells_file is not None
    assert found[failed].cells_file is found[failed].tops_file is None
    assert found[failed].failure is not None
    assert found[failed].failure.reason is Reason.READ_ERROR


def test_a_lease_of_nothing_but_failures_writes_nothing(
    finishing: Finishing, results: ResultsFolder
) -> None:
    failed = counted(2)
    failed.fail(ReadError("It went away."))
    finishing.add(failed)
    assert finishing.outcomes()[failed].cells_file is None
    assert results.names("cells", deep=True) == []
