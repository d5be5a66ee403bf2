"""A report of a real night, page by page and byte by byte."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.errors import ResultsError
from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.erasing.erase import erase_slide
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName, slide_stem
from cvm_batch.results.manifest import RunState, rewrite_manifest
from cvm_batch.results.reading import Results
from cvm_batch.results.report import slides as slides_module
from cvm_batch.results.report.writing import write_report
from cvm_batch.results.slides import commit_slides
from cvm_batch.results.verifying import verify_results
from cvm_batch.results.worklist import Worklist
from cvm_batch.texts import printable
from tests.archives.object_store import serving_s3
from tests.results.nights import HOSTILE, Night
from tests.results.report.conftest import files_of, read
from tests.results.test_erasing import spellings
from tests.results.test_slides import row


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str, name: str) -> list[str | None]:
        return [attributes.get(name) for each, attributes in self.tags if each == tag]


@pytest.fixture
def results(night: Night, tmp_path: Path) -> Path:
    return shutil.copytree(night.results, tmp_path / "results")


def pages(report: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(report.rglob("*.html")):
        yield path.relative_to(report).as_posix(), read(path)


def decoded(page: bytes) -> bytes:
    """What stands in a page's data URLs that hold text."""
    return b"".join(map(base64.b64decode, re.findall(rb"json;base64,([^\"]*)", page)))


def features_of(page: Path) -> list[Any]:
    """The cells that a slide's page offers for QuPath."""
    found = re.search(r'href="data:application/geo\+json;base64,(.*?)"', read(page))
    features: list[Any] = json.loads(base64.b64decode(found[1]))["features"] if found else []
    return features


# What is where


def test_each_slide_has_a_page_and_each_link_leads_to_a_file(night: Night, reported: Path) -> None:
    with Results(night.results) as opened:
        entries = Worklist.read(opened, run_id=night.first_run).entries
    assert {path.stem for path in (reported / "slides").glob("*.html")} == {
        slide_stem(entry.slide_id) for entry in entries
    }
    for name, text in pages(reported):
        page = Seen(text)
        ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
        for link in page.all("a", "href"):
            assert link is not None
            if link.startswith("data:"):
                continue
            file, _, anchor = link.partition("#")
            target = (reported / name).parent / file if file else reported / name
            assert target.resolve().is_relative_to(reported.resolve())
            assert target.is_file(), f"{name} links to {link}"
            assert file or anchor in ids


def test_nothing_is_loaded_and_only_what_is_ours_runs(reported: Path) -> None:
    for name, text in pages(reported):
        page = Seen(text)
        (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
        assert policy is not None
        assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'")
        assert "unsafe" not in policy
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), name
        assert all(str(source).startswith("data:image/jpeg") for source in page.all("img", "src"))
        assert all(alt for alt in page.all("img", "alt"))
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"link", "iframe", "object", "embed", "base"}
        assert not [a for _, a in page.tags for key in a if key == "style" or key.startswith("on")]
        for tag, source in (("style", "style-src"), ("script", "script-src")):
            for content in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
                digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
                assert f"{source} 'sha256-{digest}'" in policy
        assert ("script-src" in policy) == (name == "worklist.html")


def test_pages_are_in_order_for_screen_readers(reported: Path) -> None:
    for name, text in pages(reported):
        page = Seen(text)
        assert page.all("html", "lang") == ["en"]
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(b - a <= 1 for a, b in pairwise(levels)), name
        tables = sum(tag == "table" for tag, _ in page.tags)
        assert sum(tag == "caption" for tag, _ in page.tags) == tables
        assert None not in page.all("th", "scope")
        assert "a research and triage aid, not a diagnosis" in text.lower()


def test_lists_are_apart_and_nothing_unread_is_ranked(reported: Path) -> None:
    text = read(reported / "worklist.html")
    titles = re.findall(r'scope="rowgroup" colspan="\d+">(.*?) <span', text)
    assert titles == ["Look at these first", "Ranked", "Not read whole", "Failed"]
    assert text.index(">holed<") < text.index(">hsil.zip<") < text.index(">holed-normal<")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    ranked = {data["lists"][row[0]][0] for row in data["rows"] if row[4] is not None}
    assert ranked == {"ranked"}


def test_a_slide_page_shows_its_cells(night: Night, reported: Path) -> None:
    stem = slide_stem(HOSTILE[0])
    page = Seen(read(reported / "slides" / f"{stem}.html"))
    assert len(page.all("img", "src")) == 20
    text = " ".join("".join(page.text).split())
    assert "=cell <0>" in text  # its cells' names are harmless, too
    assert re.search(r"x \d[\d,]+, y \d[\d,]+", text)
    assert len(features_of(reported / "slides" / f"{stem}.html")) == 20
    # Of crops without a table nobody knows where they lay.
    assert features_of(reported / "slides" / f"{slide_stem('hsil.zip')}.html") == []


def test_failures_say_why_and_what_to_do(reported: Path) -> None:
    text = read(reported / "failures.html")
    for told in ("Damaged file", "Copy the file again", "Some cells unreadable", "holed-normal"):
        assert told in text
    page = read(reported / "slides" / f"{slide_stem('failed.zip')}.html")
    assert "No cell of this slide counts" in page
    assert "Copy the file again" in page
    assert "Most suspicious cells" not in page
    assert "≥ 20" in read(reported / "slides" / f"{slide_stem('holed')}.html")


# Names that do harm


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(reported: Path, name: str) -> None:
    page = read(reported / "slides" / f"{slide_stem(name)}.html")
    assert printable(name) in "".join(Seen(page).text)
    for _, text in pages(reported):
        assert "<script>alert" not in text
        assert not re.search("[\u202e\x1b]", text)
        tags = [tag for tag, _ in Seen(text).tags]
        assert tags.count("script") in (0, 2)


# With pseudonyms


def test_pseudonyms_leave_no_name_anywhere(
    night: Night, results: Path, pseudonyms: Pseudonyms
) -> None:
    write_report(results, night.first_run, pseudonyms=pseudonyms)
    report = results / "reports" / f"{night.first_run}-pseudonyms"
    names = [*HOSTILE, "hsil.zip", "changed.zip", "failed.zip", "holed-normal", "holed"]
    files = files_of(report)
    for name in names:
        assert f"slides/{pseudonyms.of(name)}.html" in files
        hidden = [*spellings(name), *spellings(printable(name)), slide_stem(name).encode()]
        for path, content in files.items():
            assert not [one for one in hidden if one in content], path
            assert not [one for one in hidden if one in decoded(content)], path
    everything = b"".join(files.values())
    for word in (str(night.results.parent).encode(), b"=cell", b"calc", b"alert("):
        assert word not in everything
    plain = results / "reports" / night.first_run
    assert not plain.exists()


def test_cells_of_pseudonyms_have_other_identifiers(
    night: Night, results: Path, pseudonyms: Pseudonyms
) -> None:
    """The usual ones are digests of the slide's name, which could be guessed."""
    write_report(results, night.first_run)
    write_report(results, night.first_run, pseudonyms=pseudonyms)
    plain, hidden = (
        {
            feature["id"]
            for path in (results / "reports" / folder / "slides").iterdir()
            for feature in features_of(path)
        }
        for folder in (night.first_run, f"{night.first_run}-pseudonyms")
    )
    assert plain
    assert len(plain) == len(hidden)
    assert not plain & hidden


# Writing it again, elsewhere, in processes


def test_twice_the_same_bytes_in_one_process_or_several(
    night: Night, results: Path, reported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slides_module, "_FEW_SLIDES", 0)
    monkeypatch.setattr(slides_module, "_FILES_A_SHARE", 4)
    monkeypatch.setattr(slides_module, "usable_cpus", lambda: 2)
    write_report(results, night.first_run)
    assert files_of(results / "reports" / night.first_run) == files_of(reported)


def test_what_an_older_report_left_goes_and_nothing_else(night: Night, results: Path) -> None:
    report = results / "reports" / night.first_run
    (report / "slides").mkdir(parents=True)
    gone = ["worklist-7.html", "slides/0123456789abcdef.html"]
    stays = ["notes.txt", "slides/mine.html", "worklist-7.html.bak"]
    for name in gone + stays:
        (report / name).write_text("older")
    written = write_report(results, night.first_run)
    files = files_of(report)
    assert not set(gone) & set(files)
    assert set(stays) <= set(files)
    assert written.files == len(files) - len(stays)
    assert written.bytes == sum(map(len, files.values())) - 5 * len(stays)


def test_elsewhere_there_is_nothing_but_the_report(
    night: Night, reported: Path, tmp_path: Path
) -> None:
    written = write_report(night.results, night.first_run, out=tmp_path / "out")
    assert written.address == str(tmp_path / "out" / "index.html")
    assert files_of(tmp_path / "out") == files_of(reported)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["slides"]
    assert not (night.results / "reports").exists()


def test_on_object_storage(night: Night, reported: Path) -> None:
    with serving_s3() as server:
        address = server.put_all(night.results, "lab/results")
        written = write_report(address, night.first_run)
        assert written.address == f"{address}/reports/{night.first_run}/index.html"
        folder = ResultsFolder(address)
        for name, content in files_of(reported).items():
            assert folder.read(f"reports/{night.first_run}/{name}") == content


def test_results_stay_as_they_are(night: Night, results: Path) -> None:
    before = {name: data for name, data in files_of(results).items() if "lock" not in name}
    write_report(results)
    after = {name: data for name, data in files_of(results).items() if "lock" not in name}
    assert {name: data for name, data in after.items() if not name.startswith("reports/")} == before
    assert verify_results(results).findings == ()


def test_the_latest_and_an_unknown_run(night: Night, results: Path) -> None:
    assert write_report(results).run_id == night.second_run
    with pytest.raises(ResultsError, match=r"holds no run 'other': `cvm-batch list .*` shows"):
        write_report(results, "other")


# Runs that did not go well


def test_a_later_run_lists_what_is_still_open(night: Night, results: Path) -> None:
    """The second run classified one slide; two that are not complete stayed as they were."""
    write_report(results, night.second_run)
    report = results / "reports" / night.second_run
    text = read(report / "failures.html")
    assert "Still open from earlier runs" in text
    assert "holed-normal" in text
    assert night.first_run in text
    assert len(list((report / "slides").glob("*.html"))) < len(HOSTILE)


@pytest.mark.parametrize("state", ["aborted", "stopped", "running"])
def test_a_run_that_ended_early(night: Night, results: Path, state: str) -> None:
    folder = ResultsFolder(results)
    run = RunName.of(night.first_run)
    manifest = json.loads(folder.read(run.manifest))
    told = "The disk <b>is full</b>."
    ended = {} if state == "running" else {"finished_at": manifest["finished_at"], "error": told}
    lacking = {"finished_at": None, "exit_code": None, "tiles_per_second": None, "seconds": {}}
    rewrite_manifest(folder, run, manifest | {"state": RunState(state)} | lacking | ended)
    write_report(results, night.first_run)
    text = read(results / "reports" / night.first_run / "index.html")
    title = {"aborted": "Aborted", "stopped": "Stopped before the end", "running": "Interrupted"}
    assert f"<h1>{title[state]}</h1>" in text
    assert "<b>is" not in text
    assert ("The disk &lt;b&gt;is full" in text) == (state != "running")


def test_a_run_without_a_slide(night: Night, results: Path) -> None:
    """As of one that was aborted before its first commit."""
    for path in results.glob("slides/*/*"):
        path.unlink()
    written = write_report(results, night.first_run)
    report = results / "reports" / night.first_run
    assert written.files == 5
    assert "No slide of this run can be ranked." in read(report / "index.html")
    assert "This run classified no slide." in read(report / "worklist.html")
    assert "<script" not in read(report / "worklist.html")
    assert "Not judged: no slide was completed" in read(report / "drift.html")


def test_a_run_without_a_complete_slide(night: Night, results: Path) -> None:
    for path in results.glob("slides/*/*"):
        path.unlink()
    failed = asdict(row("bad.zip")) | {
        "run_id": night.first_run,
        "status": "failed",
        "reason": "of_a_later_version",
        "tops_files": [],
        "cells_files": [],
        **dict.fromkeys(
            ("class_counts", "group_counts", "slide_score", "abnormal_count", "confidence_mean")
        ),
    }
    rows = [type(row("x"))(**failed)]
    commit_slides(ResultsFolder(results), RunName.of(night.first_run), 0, rows)
    write_report(results, night.first_run)
    report = results / "reports" / night.first_run
    assert "Another reason" in read(report / "failures.html")
    assert "No slide of this run can be ranked." in read(report / "index.html")


def test_a_damaged_file_is_told(night: Night, results: Path) -> None:
    path = min(results.glob(f"tops/*/{night.first_run}/lease-0*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ResultsError, match="cannot be read"):
        write_report(results, night.first_run)
    path.unlink()
    with pytest.raises(ResultsError, match="copy it back"):
        write_report(results, night.first_run)


# Erasure


def test_an_erased_slide_is_in_no_report(night: Night, results: Path) -> None:
    name = HOSTILE[0]
    for run_id in (night.first_run, night.second_run):
        write_report(results, run_id)
    erased = erase_slide(ResultsFolder(results), name)
    assert erased.reports_removed > 10
    assert files_of(results / "reports") == {}
    write_report(results, night.first_run)
    for path, content in files_of(results / "reports").items():
        assert slide_stem(name) not in path
        assert not [one for one in (*spellings(name), b"alert(") if one in content]
