"""Whole runs in this process: exact counts, resume, damage, stops, a killed driver."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.contents import content_of
from cvm_batch.archives.formats import identity_of
from cvm_batch.cli.report import report_at_end
from cvm_batch.errors import CommitError, ExitCode, ResultsInUseError, UsageError
from cvm_batch.model.bundle import Bundle, write_bundle
from cvm_batch.model.precision import Precision
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.results.manifest import RunState
from cvm_batch.results.schemas import Status
from cvm_batch.results.sealing import exclusive
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import DecodeOn, ExecutorKind, Settings
from cvm_batch.screening.summary import Progress, RunSummary
from tests.archives import making
from tests.conftest import coloured_tiles

FORMATS = {
    "folder": making.write_folder,
    "zip.zip": making.write_zip,
    "v2.zarr": partial(making.write_zarr, zarr_format=2, chunk=16),
    "v3.zarr": partial(making.write_zarr, chunk=16),
}


def flip_byte_in_member(path: Path) -> None:
    """Damage the stored data of a zip's third member; its CRC-32 no longer matches."""
    with zipfile.ZipFile(path) as packed:
        member = packed.infolist()[2]
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 0x10
    path.write_bytes(data)


def tiles(count: int, seed: int) -> NDArray[np.uint8]:
    classes = np.random.default_rng(seed).integers(0, 11, count)
    return coloured_tiles(classes, seed=seed)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Four slides, one of each format, of 40 to 70 cells."""
    for number, (name, write) in enumerate(FORMATS.items()):
        write(tmp_path / "slides" / name, tiles(40 + 10 * number, seed=number))
    return tmp_path / "slides"


@pytest.fixture
def settings(slides: Path, tiny_bundle: Bundle, tmp_path: Path) -> Settings:
    return Settings(
        inputs=(str(slides),),
        model=str(tiny_bundle.path),
        out=tmp_path / "results",
        precision=Precision.FP32,
        executor=ExecutorKind.LOCAL,
    )


def rows(settings: Settings) -> list[dict[str, Any]]:
    table = pq.read_table(settings.out / "slides", partitioning=None).sort_by("finished_at")
    return list(table.to_pylist(maps_as_pydicts="strict"))


def by_slide(settings: Settings) -> dict[str, dict[str, Any]]:
    found = {row["slide_id"]: row for row in rows(settings)}
    assert len(found) == len(rows(settings)), "one row per slide"
    return found


def of_slide(path: Path, row: dict[str, Any]) -> pa.Table:
    return pq.read_table(path, partitioning=None, filters=[("slide_id", "==", row["slide_id"])])


def cells(settings: Settings, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The slide's cells by index, from the files that its row names."""
    found = [
        cell
        for name in row["cells_files"]
        for cell in of_slide(settings.out / name, row).to_pylist()
    ]
    return sorted(found, key=lambda cell: cell["index"])


def plain_loop(bundle: Bundle, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The paper's way: one image at a time through Pillow, torchvision and the network."""
    network = bundle.network()
    spec = bundle.spec.preprocessing
    found = []
    with torch.inference_mode():
        for tile in pixels:
            side = (spec.input_px, spec.input_px)
            resized = Image.fromarray(tile).resize(side, Image.Resampling.BILINEAR)
            image = transforms.to_dtype(transforms.pil_to_tensor(resized), torch.float32, True)
            normal = transforms.normalize(image, list(spec.mean), list(spec.std))
            found.append(network(normal[None]).softmax(1).numpy()[0])
    return np.stack(found)


def assert_consistent(row: dict[str, Any]) -> None:
    if row["cells_expected"] is not None:
        assert row["cells_expected"] == row["cells_classified"] + row["cells_unreadable"]
    if row["status"] == Status.COMPLETE:
        assert row["cells_unreadable"] == 0
        assert sum(row["class_counts"].values()) == row["cells_classified"]
        assert row["abnormal_count"] == row["group_counts"][row["primary_group"]]
        assert row["reason"] is row["detail"] is None
    else:
        assert row["class_counts"] is row["group_counts"] is row["abnormal_count"] is None
        assert row["slide_score"] is None
        assert row["reason"]
        assert row["detail"]
    if row["status"] == Status.INCOMPLETE:
        assert sum(row["counts_at_least"].values()) == row["cells_classified"]


def test_every_cell_has_the_class_of_a_plain_loop(settings: Settings, tiny_bundle: Bundle) -> None:
    summary = run(settings)
    assert summary.exit_code is ExitCode.COMPLETE
    assert summary.by_status == Counter({Status.COMPLETE: 4})
    found = by_slide(settings)
    assert set(found) == set(FORMATS)
    for number, name in enumerate(FORMATS):
        row = found[name]
        assert_consistent(row)
        expected = plain_loop(tiny_bundle, tiles(40 + 10 * number, seed=number))
        classified = cells(settings, row)
        assert [cell["index"] for cell in classified] == list(range(len(expected)))
        got = np.array([cell["probabilities"] for cell in classified])
        assert np.abs(got - expected).max() < 0.02
        best = np.sort(expected, axis=1)
        clear = best[:, -1] - best[:, -2] > 0.01
        assert clear.sum() > 0.9 * len(clear)
        names = np.array(tiny_bundle.spec.class_names)
        classes = np.array([cell["class"] for cell in classified])
        assert (classes == names[expected.argmax(axis=1)])[clear].all()
        assert row["class_counts"] == {name: int((classes == name).sum()) for name in names}


def test_formats_agree_on_the_same_cells(tmp_path: Path, settings: Settings) -> None:
    shutil.rmtree(settings.inputs[0])
    for name, write in FORMATS.items():
        write(Path(settings.inputs[0]) / name, tiles(50, seed=1))
    run(settings)
    counts = [row["class_counts"] for row in by_slide(settings).values()]
    assert len(counts) == 4
    assert all(count == counts[0] for count in counts)


def test_the_score_and_the_top_cells(settings: Settings) -> None:
    run(settings)
    for row in by_slide(settings).values():
        primary = sorted((cell["p_primary"] for cell in cells(settings, row)), reverse=True)
        assert row["slide_score"] == pytest.approx(np.mean(primary[:20]))
        tops = [of_slide(settings.out / name, row) for name in row["tops_files"]]
        assert sorted((p for top in tops for p in top["p_primary"].to_pylist()), reverse=True)[
            :20
        ] == pytest.approx(primary[:20])
        by_suspicion = sorted(cells(settings, row), key=lambda cell: -cell["p_primary"])
        assert row["top_classes"] == Counter(cell["class"] for cell in by_suspicion[:20])


def test_the_same_again_classifies_nothing(settings: Settings) -> None:
    run(settings)
    again = run(settings)
    assert again.by_status.total() == 0
    assert again.settled == Counter({Status.COMPLETE: 4})
    assert again.exit_code is ExitCode.COMPLETE
    assert len(rows(settings)) == 4


def test_a_new_slide_is_classified_alone(settings: Settings) -> None:
    run(settings)
    making.write_zip(Path(settings.inputs[0]) / "new.zip", tiles(30, seed=9))
    again = run(settings)
    assert again.by_status == Counter({Status.COMPLETE: 1})
    assert [row["slide_id"] for row in rows(settings)][-1] == "new.zip"


def test_a_changed_slide_is_classified_again(settings: Settings) -> None:
    run(settings)
    path = Path(settings.inputs[0]) / "zip.zip"
    path.unlink()
    making.write_zip(path, tiles(20, seed=9))
    assert run(settings).by_status == Counter({Status.COMPLETE: 1})
    assert [row["cells_classified"] for row in rows(settings) if row["slide_id"] == "zip.zip"] == [
        50,
        20,
    ]


def test_what_just_changed_is_for_the_next_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = run(replace(settings, settle_seconds=3600.0))
    assert (left.fresh, left.by_status.total(), left.exit_code) == (4, 0, ExitCode.COMPLETE)
    assert not (Path(settings.out) / "slides").exists()
    (path,) = (Path(settings.out) / "runs").glob("*.json")
    told = json.loads(path.read_text())
    assert (told["slides"]["fresh"], told["slides"]["planned"]) == (4, 0)
    time.sleep(0.1)
    boundary = time.time()
    time.sleep(0.1)
    making.write_zip(Path(settings.inputs[0]) / "new.zip", tiles(30, seed=9))
    monkeypatch.setattr(Settings, "quiet_since", lambda self, now: boundary)
    taken = run(settings)
    assert (taken.fresh, taken.by_status) == (1, Counter({Status.COMPLETE: 4}))
    monkeypatch.undo()
    assert run(settings).by_status == Counter({Status.COMPLETE: 1})


def test_slides_are_told_by_what_they_hold(settings: Settings) -> None:
    rehashed = replace(settings, rehash=True)
    run(rehashed)
    keys = {row["result_key"] for row in rows(settings)}
    path = Path(settings.inputs[0]) / "zip.zip"
    os.utime(path, (1, 1))
    assert run(rehashed).settled == Counter({Status.COMPLETE: 4})
    path.unlink()
    making.write_zip(path, tiles(20, seed=9))
    assert run(rehashed).by_status == Counter({Status.COMPLETE: 1})
    newest = rows(settings)[-1]
    assert newest["slide_id"] == "zip.zip"
    address = SlideAddress(uri=str(path))
    assert newest["slide_identity"] == content_of(address).identity != identity_of(address)
    assert newest["result_key"] not in keys


def test_another_bundle_classifies_all_again_and_keeps_the_older_rows(
    settings: Settings, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    run(settings)
    spec = replace(tiny_bundle.spec, name="another")
    sentinels = tiny_bundle.sentinels().tiles
    another = write_bundle(tmp_path / "another", spec, tiny_bundle.network(), sentinels, card="#")
    again = run(replace(settings, model=str(another.path)))
    assert again.by_status == Counter({Status.COMPLETE: 4})
    assert Counter(row["bundle"] for row in rows(settings)) == {"tiny": 4, "another": 4}
    assert run(settings).by_status.total() == 0, "the first bundle's rows still stand"


def test_damage_costs_its_slide_alone(settings: Settings) -> None:
    folder = Path(settings.inputs[0])
    flip_byte_in_member(folder / "zip.zip")
    images = sorted((folder / "folder").glob("*.png"))
    images[3].write_bytes(images[3].read_bytes()[:60])
    (folder / "broken.zip").write_bytes(b"PK no zip at all")
    summary = run(settings)
    assert summary.exit_code is ExitCode.NOT_ALL_COMPLETE
    found = by_slide(settings)
    for row in found.values():
        assert_consistent(row)
    assert {name: (row["status"], row["reason"]) for name, row in found.items()} == {
        "folder": ("incomplete", "unreadable_tiles"),
        "zip.zip": ("failed", "checksum_mismatch"),
        "broken.zip": ("failed", "bad_format"),
        "v2.zarr": ("complete", None),
        "v3.zarr": ("complete", None),
    }
    assert images[3].name in found["folder"]["detail"]
    assert (found["folder"]["cells_classified"], found["folder"]["cells_unreadable"]) == (39, 1)
    assert found["zip.zip"]["cells_files"] == []

    again = run(settings)
    # The same bytes would fail again, but a copy under the same name may be another.
    assert again.by_status == {Status.FAILED: 1}
    assert [slide.slide_id for slide in again.not_complete] == ["zip.zip"]
    assert again.exit_code is ExitCode.NOT_ALL_COMPLETE
    assert {(slide.slide_id, slide.reason) for slide in again.settled_not_complete} == {
        ("broken.zip", "bad_format"),
        ("folder", "unreadable_tiles"),
    }


def test_a_passing_error_is_tried_again_by_the_next_submit(settings: Settings) -> None:
    folder = Path(settings.inputs[0])
    shutil.rmtree(folder / "v3.zarr")

    def change_zip(progress: object) -> None:
        os.utime(folder / "zip.zip", ns=(1, time.time_ns()))

    summary = run(settings, report=change_zip)
    assert {(row.slide_id, row.reason) for row in summary.not_complete} == {
        ("zip.zip", "input_changed")
    }
    again = run(settings)
    assert again.by_status == Counter({Status.COMPLETE: 1})
    assert again.exit_code is ExitCode.COMPLETE


def test_stray_files_are_listed(settings: Settings) -> None:
    (Path(settings.inputs[0]) / "notes.docx").write_text("not a slide")
    summary = run(settings)
    assert summary.ignored == 1
    manifest = json.loads((settings.out / f"runs/{summary.run_id}.json").read_text())
    assert manifest["ignored"][0]["uri"].endswith("notes.docx")


def test_the_manifest_tells_what_ran(settings: Settings, tiny_bundle: Bundle) -> None:
    summary = run(settings)
    manifest = json.loads((settings.out / f"runs/{summary.run_id}.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["exit_code"] == 0
    assert manifest["bundle"]["digest"] == tiny_bundle.digest
    assert manifest["precision"] == "fp32"
    assert manifest["slides"]["complete"] == manifest["slides"]["planned"] == 4
    assert manifest["cells"] == {"expected": 220, "classified": 220, "unreadable": 0}
    assert manifest["replicas"][0]["sentinel_difference"] <= 1e-3
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["settings"]["inputs"] == [str(settings.inputs[0])]


def undisturbed(settings: Settings, out: Path) -> dict[str, Any]:
    reference = replace(settings, out=out)
    run(reference)
    return comparable(reference)


def comparable(settings: Settings) -> dict[str, Any]:
    """Rows and cells without what may differ: times, attempts, the run and its files."""
    same = ("status", "class_counts", "cells_expected", "cells_classified", "result_key")
    return {
        slide: (
            {name: row[name] for name in same},
            [(cell["index"], cell["class"]) for cell in cells(settings, row)],
        )
        for slide, row in by_slide(settings).items()
    }


def many_slides(folder: str | Path, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(count):
        making.write_zip(Path(folder) / f"{number:03d}.zip", tiles(60, seed=number))


def test_a_stopped_run_leaves_the_rest_for_the_next(settings: Settings, tmp_path: Path) -> None:
    many_slides(settings.inputs[0], 40)
    small = replace(settings, batch_size=8)
    done = 0

    def look(progress: Progress) -> None:
        nonlocal done
        done = progress.slides_done

    summary = run(small, report=look, should_stop=lambda: done > 0)
    assert summary.state is RunState.STOPPED
    assert summary.exit_code is ExitCode.STOPPED
    assert 0 < summary.by_status.total() < 40
    assert summary.left == 40 - summary.by_status.total()
    again = run(small)
    assert again.exit_code is ExitCode.COMPLETE
    assert again.settled.total() == summary.by_status.total()
    assert comparable(settings) == undisturbed(settings, tmp_path / "undisturbed")


def test_a_second_interruption_stops_at_once_and_says_so(settings: Settings) -> None:
    many_slides(settings.inputs[0], 40)

    def interrupt(progress: Progress) -> None:
        if progress.slides_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(settings, batch_size=8), report=interrupt)
    (path,) = (settings.out / "runs").glob("*.json")
    manifest = json.loads(path.read_text())
    assert (manifest["state"], manifest["exit_code"]) == ("stopped", 4)
    assert manifest["slides"]["complete"] == len(rows(settings)) > 0


def test_a_commit_that_fails_aborts_the_run_and_says_so(settings: Settings) -> None:
    def put_a_file_in_the_way(progress: Progress) -> None:
        (settings.out / "cells").write_text("not a folder")

    with pytest.raises(CommitError, match="could not be committed"):
        run(settings, report=put_a_file_in_the_way, at_end=partial(report_at_end, settings.out))
    (path,) = (settings.out / "runs").glob("*.json")
    manifest = json.loads(path.read_text())
    assert (manifest["state"], manifest["exit_code"]) == ("aborted", 1)
    page = settings.out / "reports" / manifest["run_id"] / "index.html"
    assert "<h1>Aborted</h1>" in page.read_text()
    (settings.out / "cells").unlink()
    assert run(settings).exit_code is ExitCode.COMPLETE


def test_a_name_that_is_not_utf8_costs_nobody_anything(settings: Settings) -> None:
    folder = os.fsencode(settings.inputs[0])
    shutil.copy(folder + b"/zip.zip", folder + b"/good\xff.zip")
    Path(os.fsdecode(folder + b"/bad\xfe.zip")).write_bytes(b"PK no zip")
    summary = run(settings)
    assert summary.exit_code is ExitCode.NOT_ALL_COMPLETE
    found = by_slide(settings)
    assert found["good\\xff.zip"]["status"] == "complete"
    assert found["bad\\xfe.zip"]["status"] == "failed"
    assert found["bad\\xfe.zip"]["uri"].endswith("/bad\\xfe.zip")
    assert run(settings).by_status.total() == 0


DRIVER = """
import sys
from pathlib import Path
from cvm_batch.model.precision import Precision
from cvm_batch.results.sealing import exclusive
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
slides, model, out = sys.argv[1:]
run(Settings(inputs=(slides,), model=model, out=Path(out), batch_size=8,
             precision=Precision.FP32, executor=ExecutorKind.LOCAL))
"""


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4])
def test_a_killed_driver_repeats_no_complete_slide(
    settings: Settings, tmp_path: Path, delay: float
) -> None:
    kill_and_submit_again(settings, tmp_path, delay)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(20))
def test_a_driver_killed_at_any_moment(settings: Settings, tmp_path: Path, seed: int) -> None:
    kill_and_submit_again(settings, tmp_path, delay=random.Random(seed).uniform(0, 2))


def kill_and_submit_again(settings: Settings, tmp_path: Path, delay: float) -> None:
    many_slides(settings.inputs[0], 60)
    command = [sys.executable, "-c", DRIVER, str(settings.inputs[0]), settings.model]
    driver = subprocess.Popen([*command, str(settings.out)])
    try:
        wait_for(lambda: any((settings.out / "cells").rglob("*.parquet")), driver)
        time.sleep(delay)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    committed = by_slide(settings) if (settings.out / "slides").exists() else {}
    assert len(committed) < 60, "the driver was killed too late"
    again = run(settings)
    assert again.settled.total() == len(committed)
    assert again.exit_code is ExitCode.COMPLETE
    assert comparable(settings) == undisturbed(settings, tmp_path / "undisturbed")


def wait_for(happened: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, "the driver ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_superseded_cells_are_removed_at_the_end(settings: Settings) -> None:
    """A slide that fails at its end, when its other parts have written their files."""
    path = Path(settings.inputs[0]) / "v3.zarr"
    shutil.rmtree(path)
    making.write_zarr(path, tiles(400, seed=1), chunk=16)
    chunk = path / "tiles/c/24/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    summary = run(replace(settings, batch_size=8))
    assert {(slide.slide_id, slide.reason) for slide in summary.not_complete} == {
        ("v3.zarr", "checksum_mismatch")
    }
    named = {name for row in rows(settings) for name in (*row["cells_files"], *row["tops_files"])}
    on_disk = {
        path.relative_to(settings.out).as_posix()
        for kind in ("cells", "tops")
        for path in (settings.out / kind).rglob("*.parquet")
    }
    assert on_disk == named


def test_a_folder_in_use_is_refused(settings: Settings) -> None:
    other = ResultsFolder(settings.out)
    other.prepare()
    with exclusive(other, RunName.new(datetime.now(UTC))), pytest.raises(ResultsInUseError):
        run(settings)


def test_bf16_agrees_on_nearly_all_cells(settings: Settings) -> None:
    run(settings)
    low = replace(settings, precision=Precision.BF16, out=settings.out.with_name("bf16"))
    run(low)
    one, other = comparable(settings), comparable(low)
    pairs = [
        (cell, twin)
        for slide in one
        for cell, twin in zip(one[slide][1], other[slide][1], strict=True)
    ]
    differ = sum(cell != twin for cell, twin in pairs)
    assert differ <= 0.01 * len(pairs)


def test_settings_refuse_nonsense(settings: Settings) -> None:
    with pytest.raises(UsageError, match="--batch-size must be at least 1"):
        replace(settings, batch_size=0)
    with pytest.raises(UsageError, match="for --executor ray"):
        replace(settings, replicas=2)
    with pytest.raises(UsageError, match="for --executor ray"):
        replace(settings, decode_on=DecodeOn.CLUSTER)
    with pytest.raises(UsageError, match="--replicas-per-gpu must be at least 1"):
        replace(settings, executor=ExecutorKind.RAY, replicas_per_gpu=0)


def test_the_summary_as_json_is_plain_data(settings: Settings) -> None:
    summary: RunSummary = run(settings)
    told = json.loads(json.dumps(summary.to_json()))
    assert told["slides"] == {"complete": 4, "incomplete": 0, "failed": 0}
    assert told["cells_classified"] == 220
