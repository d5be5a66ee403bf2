"""Structured logs: one JSON object a line, and no patient's name where a key is set."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

from cvm_batch.logs import log_event, log_json
from cvm_batch.model.bundle import Bundle
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from tests.archives import making
from tests.screening.test_run import flip_byte_in_member, tiles

KEY = Pseudonyms(b"sixteen bytes or more")


def logged(settings: Settings, pseudonyms: Pseudonyms | None = None) -> list[dict[str, Any]]:
    stream = io.StringIO()
    with log_json(stream, pseudonyms):
        run(settings)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def night(folder: Path, bundle: Bundle) -> Settings:
    for name in ("a.zip", "b\nc.zip"):
        making.write_zip(folder / "slides" / name, tiles(10, seed=len(name)))
    flip_byte_in_member(folder / "slides" / "a.zip")
    return Settings(
        inputs=(str(folder / "slides"),),
        model=str(bundle.path),
        out=folder / "results",
        executor=ExecutorKind.LOCAL,
    )


def test_a_run_tells_of_itself_and_of_each_slide(tmp_path: Path, tiny_bundle: Bundle) -> None:
    lines = logged(night(tmp_path, tiny_bundle))
    first, last = lines[0], lines[-1]
    assert (first["message"], last["message"]) == ("run started", "run ended")
    assert (last["state"], last["exit_code"]) == ("finished", 3)
    assert {line["run_id"] for line in lines} == {first["run_id"]}
    slides = {line["slide_id"]: line for line in lines if line["message"] == "slide ended"}
    assert {name: line["status"] for name, line in slides.items()} == {
        "a.zip": "failed",
        "b\nc.zip": "complete",
    }
    assert slides["a.zip"]["reason"] == "checksum_mismatch"
    assert all(len(line["slide_identity"]) == 64 for line in slides.values())


def test_with_a_key_no_slide_is_named(tmp_path: Path, tiny_bundle: Bundle) -> None:
    lines = logged(night(tmp_path, tiny_bundle), KEY)
    named = {line["slide"] for line in lines if line["message"] == "slide ended"}
    assert named == {KEY.of("a.zip"), KEY.of("b\nc.zip")}
    assert ".zip" not in json.dumps(lines)


def test_nothing_is_logged_unless_asked() -> None:
    stream = io.StringIO()
    with log_json(stream):
        log_event(logging.getLogger("cvm_batch.x"), "told", empty=None, full=1)
    log_event(logging.getLogger("cvm_batch.x"), "not told")
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert (told["message"], told["full"], "empty" in told) == ("told", 1, False)
