"""The readers against a coverage-guided fuzzer, and damaged whole slides in their own processes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.verifying import SlideVerdict, verify_slide
from cvm_batch.errors import DecoderCrashedError, SlideError
from cvm_batch.isolation import Done, run_isolated
from tests.archives.fuzzing import TARGETS
from tests.archives.making import write_table
from tests.archives.wsi_making import write_svs

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]

#: Each target's share of a campaign.
SECONDS = 60
SLIDES = 300


@pytest.mark.parametrize("target", TARGETS)
def test_the_fuzzer_finds_nothing(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("atheris")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.archives.fuzzing", target, tmp_path, str(SECONDS)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    (runs,) = re.findall(r"Done (\d+) runs", ended.stderr)
    assert int(runs) > 1000
    with capsys.disabled():
        print(f"\n{target}: {int(runs):,} inputs in {SECONDS} s")


def _verify(path: Path) -> SlideVerdict:
    return verify_slide(SlideAddress(uri=str(path)), OpenOptions())


def test_damaged_whole_slides_cost_nobody_else_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    whole = write_svs(tmp_path / "whole.svs", rng.integers(0, 256, (480, 480, 3), np.uint8))
    columns = {"x": [50, 240, 400], "y": [50, 240, 400], "width": [40] * 3, "height": [40] * 3}
    write_table(tmp_path / "whole.cells.csv", columns)
    data = whole.read_bytes()
    slides = [whole]
    for number in range(SLIDES):
        slides.append(tmp_path / f"{number}.svs")
        slides[-1].write_bytes(_damaged(data, rng))
        shutil.copy(tmp_path / "whole.cells.csv", tmp_path / f"{number}.cells.csv")
    slides.append(shutil.copy(whole, tmp_path / "last.svs"))
    shutil.copy(tmp_path / "whole.cells.csv", tmp_path / "last.cells.csv")

    ends: Counter[str] = Counter()
    outcomes = list(run_isolated(_verify, slides, jobs=2, timeout=60))
    for outcome in outcomes:
        if isinstance(outcome, Done):
            ends["marked" if outcome.result.unreadable else "read"] += 1
        else:
            assert isinstance(outcome.error, SlideError | DecoderCrashedError)
            ends[str(outcome.error.reason)] += 1
    with capsys.disabled():
        print(f"\ndamaged whole slides: {dict(ends.most_common())}")
    for first_and_last in (outcomes[0], outcomes[-1]):
        assert isinstance(first_and_last, Done)
        assert (first_and_last.result.tiles, first_and_last.result.unreadable) == (3, 0)


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, or the end cut off."""
    changed = bytearray(data)
    if rng.random() < 0.3:
        return bytes(changed[: int(rng.integers(1, len(data)))])
    # Half of the damage where the directories are, which decoders follow without a checksum.
    near = len(data) if rng.random() < 0.5 else 4096
    for _ in range(int(rng.integers(1, 16))):
        at = int(rng.integers(near))
        changed[at if rng.random() < 0.5 else len(data) - 1 - at] = int(rng.integers(256))
    return bytes(changed)
