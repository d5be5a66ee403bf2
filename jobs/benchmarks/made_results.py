"""A results folder of a night that never was: real schemas and files, drawn class by class."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.reporting import made_tiles
from cvm_batch.model.classes import CERVICAL_GROUPS, CVM_CERVIX_CLASSES, PRIMARY_GROUP
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName, lease_file
from cvm_batch.results.manifest import RunManifest, RunState, write_manifest
from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.png import png_files
from cvm_batch.results.schemas import TOPS, Adequacy, Status, cells_schema
from cvm_batch.results.slides import SlideRow, commit_slides

BEGAN = datetime(2026, 1, 31, 20, tzinfo=UTC)
_NAMES = np.array(CVM_CERVIX_CLASSES)
_IN_GROUP = {group: np.isin(_NAMES, members) for group, members in CERVICAL_GROUPS.items()}
_TOP_CELLS = 20
_ROWS_A_BATCH = 20
_SLIDES_A_FILE = 20
#: Shares of slides that are something else than complete and adequate.
_FAILED, _INCOMPLETE, _SCANT = 0.01, 0.02, 0.02
#: Of cells by class in a slide without and with a lesion.
_NORMAL = np.array([1, 4, 0.5, 1, 2, 500, 1, 2, 60, 30, 400])
_LESION = np.array([20, 40, 5, 40, 60, 400, 10, 20, 60, 30, 300])
#: Distinct tiles; encoding one for each top cell would take minutes.
_TILES = 200


@dataclass(frozen=True)
class _Night:
    folder: ResultsFolder
    run: RunName
    pngs: list[bytes]
    rng: np.random.Generator
    pieces: defaultdict[Path, list[pa.Table]] = field(default_factory=partial(defaultdict, list))
    """Slides' tables, by the file that they share."""

    def write_files(self) -> None:
        """As a replica does, but without a flush to disk for each."""
        for path, tables in self.pieces.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.concat_tables(tables).unify_dictionaries()
            path.write_bytes(parquet_bytes(table, row_groups=list(map(len, tables))))
        self.pieces.clear()


def make_results(
    root: Path, slides: int, cells: int, *, seed: int = 0, tiles_from: Path | None = None
) -> None:
    """Write one finished run of ``slides`` slides, with ``cells`` cells in all, to ``root``.

    Twenty slides share a cells file, and a tops file with PNG tiles of 100 px: crops in the
    folder ``tiles_from``, or made-up ones. A few slides failed, are incomplete or scant.
    """
    folder = ResultsFolder(root)
    folder.prepare()
    pngs = png_files(list(made_tiles(_TILES, tiles_from)))
    night = _Night(folder, RunName.new(BEGAN), pngs, np.random.default_rng(seed))
    sizes = night.rng.multinomial(cells, np.full(slides, 1 / slides))
    rows = []
    for number, size in enumerate(sizes):
        rows.append(_slide(night, number, int(size)))
        if (number + 1) % _SLIDES_A_FILE == 0:
            night.write_files()
    night.write_files()
    for batch, start in enumerate(range(0, slides, _ROWS_A_BATCH)):
        commit_slides(folder, night.run, batch, rows[start : start + _ROWS_A_BATCH])
    write_manifest(folder, night.run, _manifest(night, rows, cells))


def _slide(night: _Night, number: int, cells: int) -> SlideRow:
    """Make one slide: its tables, for the files of its lease, and its row."""
    slide_id = f"box-{number // 100:03d}/slide-{number:05d}.svs"
    draw, lesion = night.rng.random(), night.rng.random() < 0.1
    failed, incomplete = draw < _FAILED, _FAILED <= draw < _FAILED + _INCOMPLETE
    complete = not failed and not incomplete
    shares = night.rng.dirichlet(_LESION if lesion else _NORMAL)
    probabilities = _probabilities(night.rng, shares, 0 if failed else cells)
    p_primary = probabilities[:, _IN_GROUP[PRIMARY_GROUP]].sum(axis=1)
    classes = probabilities.argmax(axis=1)
    counts = dict(zip(CVM_CERVIX_CLASSES, np.bincount(classes, minlength=11).tolist(), strict=True))
    groups = {group: int(members[classes].sum()) for group, members in _IN_GROUP.items()}
    top = np.argsort(-p_primary, kind="stable")[:_TOP_CELLS]
    table = _cells(night.rng, slide_id, probabilities, p_primary)
    name = lease_file(number // _SLIDES_A_FILE, 0)
    if not failed:
        night.pieces[Path(night.folder.root) / night.run.cells_folder / name].append(table)
        drawn = night.rng.integers(len(night.pngs), size=len(top))
        tops = table.take(pa.array(top)).drop_columns("probabilities")
        tops = tops.append_column(TOPS.field("png"), [[night.pngs[place] for place in drawn]])
        night.pieces[Path(night.folder.root) / night.run.tops_folder / name].append(tops)
    at = BEGAN + timedelta(seconds=number)
    return SlideRow(
        run_id=night.run.run_id,
        slide_id=slide_id,
        uri=f"/slides/{slide_id}",
        slide_identity=f"{number:064x}",
        result_key=f"{number:064x}",
        bundle="made",
        bundle_digest="0" * 64,
        status=Status.FAILED if failed else Status.INCOMPLETE if incomplete else Status.COMPLETE,
        reason="checksum_mismatch" if failed else "unreadable_tiles" if incomplete else None,
        detail=None if complete else "Made up.",
        cells_expected=cells + incomplete,
        expected_from="cells_table",
        cells_classified=0 if failed else cells,
        cells_unreadable=cells if failed else int(incomplete),
        integrity=None if failed else "unverified",
        class_counts=counts if complete else None,
        group_counts=groups if complete else None,
        primary_group=PRIMARY_GROUP,
        abnormal_count=groups[PRIMARY_GROUP] if complete else None,
        abnormal_fraction=groups[PRIMARY_GROUP] / cells if complete else None,
        counts_at_least=counts if incomplete else None,
        group_counts_at_least=groups if incomplete else None,
        slide_score=float(p_primary[top].mean()) if complete else None,
        top_classes=None if failed else dict(Counter(_NAMES[classes[top]].tolist())),
        adequacy=Adequacy.SCANT if night.rng.random() < _SCANT else Adequacy.ADEQUATE,
        confidence_mean=None if failed else float(probabilities.max(axis=1).mean()),
        brightness_mean=None if failed else float(night.rng.normal(180, 10)),
        brightness_std=None if failed else 20.0,
        focus_mean=None if failed else float(night.rng.normal(300, 40)),
        cells_files=[] if failed else [str(night.run.cells_folder / name)],
        tops_files=[] if failed else [str(night.run.tops_folder / name)],
        attempts=1,
        seconds=1.0,
        started_at=at,
        finished_at=at + timedelta(seconds=1),
        precision="fp16",
        backend="torch-eager",
        versions={"cvm-batch": "0", "torch": "0"},
    )


def _probabilities(
    rng: np.random.Generator, shares: NDArray[np.float64], cells: int
) -> NDArray[np.float32]:
    """[cells, 11]: each cell is drawn by ``shares``, and the network is mostly sure of it."""
    logits = rng.normal(0, 1.5, (cells, len(shares)))
    logits[np.arange(cells), rng.choice(len(shares), size=cells, p=shares)] += 6
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=1, keepdims=True), np.float32)


def _cells(
    rng: np.random.Generator,
    slide_id: str,
    probabilities: NDArray[np.float32],
    p_primary: NDArray[np.float32],
) -> pa.Table:
    n = len(probabilities)
    xy = rng.uniform(0, 100_000, (2, n)).round(1)
    best = probabilities.argmax(axis=1).astype(np.int32)
    flat = pa.array(probabilities.reshape(-1))
    columns = {
        "slide_id": pa.repeat(slide_id, n),
        "index": np.arange(n),
        "cell_id": pa.array([f"cell-{number}" for number in range(n)]),
        "x": xy[0],
        "y": xy[1],
        "padded": np.zeros(n, np.bool_),
        "class": pa.DictionaryArray.from_arrays(best, pa.array(CVM_CERVIX_CLASSES)),
        "confidence": probabilities.max(axis=1),
        "p_primary": p_primary,
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, probabilities.shape[1]),
    }
    return pa.table(columns, schema=cells_schema(probabilities.shape[1]))


def _manifest(night: _Night, rows: list[SlideRow], cells: int) -> RunManifest:
    by_status = {str(status): sum(row.status is status for row in rows) for status in Status}
    return RunManifest(
        run_id=night.run.run_id,
        state=RunState.FINISHED,
        started_at=BEGAN.isoformat(),
        settings={"inputs": ["/slides"], "model": "made"},
        bundle={
            "name": "made",
            "digest": "0" * 64,
            "class_names": CVM_CERVIX_CLASSES,
            "groups": CERVICAL_GROUPS,
            "primary_group": PRIMARY_GROUP,
        },
        precision="fp16",
        backend="torch-eager",
        executor="ray",
        versions={"cvm-batch": "0", "torch": "0"},
        host={"cpus": 2, "platform": "Linux"},
        slides={"planned": len(rows), **by_status} | {f"settled_{status}": 0 for status in Status},
        cells={
            "expected": sum(row.cells_expected or 0 for row in rows),
            "classified": sum(row.cells_classified or 0 for row in rows),
            "unreadable": sum(row.cells_unreadable or 0 for row in rows),
        },
        ignored=[],
        seconds={"planning": 1.0, "starting": 20.0, "classifying": float(len(rows))},
        tiles_per_second=cells / len(rows),
        finished_at=(BEGAN + timedelta(seconds=len(rows) + 21)).isoformat(),
        exit_code=3,
    )
