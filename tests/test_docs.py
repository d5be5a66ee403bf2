"""What the README promises: every column, reason and command, and queries that run."""

from __future__ import annotations

import re
from pathlib import Path

import click
import duckdb
import pytest

from cvm_batch.cli import cli
from cvm_batch.errors import ExitCode, Reason
from cvm_batch.model.bundle import Bundle
from cvm_batch.results.reading import Results, View
from cvm_batch.results.schemas import SLIDES, TOPS, cells_schema
from cvm_batch.results.worklist import Worklist
from cvm_batch.screening.run import run
from cvm_batch.screening.settings import ExecutorKind, Settings
from cvm_batch.training.networks import with_network
from cvm_batch.training.recipes import find_recipe
from tests.archives import making
from tests.screening.test_run import flip_byte_in_member, tiles

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FROM_WORKLIST = re.compile(r"`(FROM worklist\(.*?\))`")


def section(title: str) -> str:
    """The text under a heading of the README, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}.*?\n(.*?)(?=^#|\Z)", README, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[1]


def columns_of(table: str) -> list[str]:
    """The names in the first column of a Markdown table, in their order."""
    cells = re.findall(r"^\| (`.*?) \|", section(table), re.M)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def test_every_column_is_explained() -> None:
    assert columns_of("slides: one row") == SLIDES.names
    assert sorted(columns_of("cells: one row")) == sorted(cells_schema(11).names)
    assert set(TOPS.names) == {*cells_schema(11).names, "png"} - {"probabilities"}


def test_every_reason_is_listed() -> None:
    listed = re.search(r"Reasons: (.*?)\n\n", README, re.S)
    assert listed
    assert re.findall(r"`(\w+)`", listed[1]) == sorted(Reason)


def test_every_exit_code_is_listed() -> None:
    listed = re.findall(r"^\| (\d) \|", section("Screen your own slides"), re.M)
    assert [int(code) for code in listed] == sorted(ExitCode)


def test_every_command_is_named() -> None:
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in cli.list_commands(context)]
    assert all(
        f"cvm-batch {command.name}" in README or command.name == "demo"
        for command in commands
        if command is not None and not command.hidden
    )


def test_the_commands_of_training_are_read_as_they_stand() -> None:
    """Their options are known, and what they compare or train are networks."""
    lines = re.findall(
        r"^    cvm-batch (train|compare) (.*?)(?:  +#.*)?$", section("Training"), re.M
    )
    words: list[str] = []
    for name, rest in lines:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found = command.make_context(name, rest.split()).params
        named = [found["network"]] if name == "train" else found["models"].split(",")
        named = [one for one in named if one not in (None, "all")]
        for one in named:
            with_network(one, find_recipe("paper-pbc8"), found["settings"])
        words += named
    assert {"resnet18", "cvm-cervix@hidden=280", "cvm-cervix@augmentation=none"} <= set(words)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    """A folder with results/ of three slides, one of them damaged."""
    folder = tmp_path_factory.mktemp("night")
    for name in ("a.zip", "b.zip", "c.zip"):
        making.write_zip(folder / "slides" / name, tiles(30, seed=ord(name[0])))
    flip_byte_in_member(folder / "slides" / "b.zip")
    settings = Settings(
        inputs=(str(folder / "slides"),),
        model=str(tiny_bundle.path),
        out=folder / "results",
        executor=ExecutorKind.LOCAL,
    )
    run(settings)
    return folder


def snippets(language: str) -> list[str]:
    sections = section("Questions to the results"), section("Read them without cvm-batch")
    return re.findall(rf"```{language}\n(.*?)```", "".join(sections), re.S)


def test_the_duckdb_query_runs(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(night)
    (query,) = snippets("sql")
    found = duckdb.sql(query).fetchall()
    assert next(row[:2] for row in found) == ("b.zip", "failed")
    assert {row[0] for row in found} == {"a.zip", "b.zip", "c.zip"}


def test_the_python_snippets_run(
    night: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(night)
    for snippet in snippets("python"):
        exec(compile(snippet, "README.md", "exec"), {})
    told = capsys.readouterr().out
    assert "checksum_mismatch" in told
    assert "1 c.zip" in told or "1 a.zip" in told


def test_every_view_and_list_is_explained(night: Path) -> None:
    views = {*columns_of("Questions to the results")}
    assert views == {*View}
    lists = columns_of("The worklist")
    with Results(night / "results") as results:
        read = Worklist.read(results)
        columns = results.table("slide_classes").column_names
        assert results.query(FROM_WORKLIST.findall(README)[0]).num_rows == 3
    assert [name for name in lists if isinstance(getattr(read, name), list)] == lists
    assert [entry.list for entry in read.entries] == ["ranked", "ranked", "failed"]
    told = re.search(r"one per slide and class: (.*) \|", README)
    assert told
    assert re.findall(r"`(\w+)`", told[1]) == columns
