"""Every reason has advice, every ending a sentence, whatever the run says."""

from __future__ import annotations

from typing import Any

import click
import pytest

from cvm_batch.cli import cli
from cvm_batch.errors import Reason
from cvm_batch.results.manifest import RunState
from cvm_batch.results.report.naming import Names
from cvm_batch.results.report.wording import ADVICE, LISTS, advice_on, ending_of
from cvm_batch.results.worklist import Worklist
from cvm_batch.texts import printable


def test_every_reason_has_advice() -> None:
    assert set(ADVICE) == set(Reason)
    for advice in ADVICE.values():
        assert advice.title
        assert advice.meaning.endswith(".")
        assert advice.what_to_do.endswith(".")
    assert len({advice.title for advice in ADVICE.values()}) == len(Reason)


def test_advice_names_commands_that_there_are() -> None:
    known = cli.list_commands(click.Context(cli))
    for advice in ADVICE.values():
        commands = advice.what_to_do.split("`")[1::2]
        assert all(command.split()[1] in known for command in commands)


@pytest.mark.parametrize("reason", [None, "of_a_later_version"])
def test_an_unknown_reason_has_advice_too(reason: str | None) -> None:
    assert advice_on(reason).what_to_do


def test_every_list_is_explained() -> None:
    lists = {name for name, kind in Worklist.__annotations__.items() if "Entry" in str(kind)}
    assert set(LISTS) == lists - {"quality_control"}


def manifest(code: int | None = 0, planned: int = 9, **slides: int) -> dict[str, Any]:
    counts = {"complete": 0, "incomplete": 0, "failed": 0} | slides
    return {"slides": {"planned": planned, **counts}, "exit_code": code}


@pytest.mark.parametrize(
    ("told", "state", "title", "sentence"),
    [
        (manifest(complete=9), "finished", "Finished, all slides complete", "Every cell"),
        (manifest(3, complete=8, failed=1), "finished", "Finished, 1 slide is not", "counts as"),
        (manifest(3, complete=7, incomplete=2), "finished", "Finished, 2 slides are", "counts as"),
        (manifest(3, planned=0), "finished", "Nothing was new", "dealt with"),
        (manifest(planned=0, fresh=1), "finished", "Nothing was taken", "1 slide had just changed"),
        (manifest(complete=9, fresh=2), "finished", "Finished, all slides that were", "2 slides"),
        (manifest(3, complete=9), "finished", "Finished, all new slides", "earlier runs"),
        (manifest(4, complete=2), "stopped", "Stopped before the end", "7 slides are left"),
        (manifest(4, complete=8), "stopped", "Stopped before the end", "1 slide is left"),
        (manifest(1, complete=2), "aborted", "Aborted", "7 slides are left"),
        (manifest(None, complete=9), "interrupted", "Interrupted", "No slide is left"),
        (manifest(None), "running", "Still running", "goes on"),
    ],
)
def test_endings(told: dict[str, Any], state: str, title: str, sentence: str) -> None:
    ending = ending_of(told, RunState(state))
    assert ending.title.startswith(title)
    assert sentence in ending.sentence


def test_names_are_made_visible() -> None:
    assert printable("a\u202eb\nc\x1b[31m") == r"a\u202eb\nc\x1b[31m"
    assert Names().of("ÄÖ 玻片.svs") == "ÄÖ 玻片.svs"
    assert len(Names().short("x" * 300)) == 64
    assert len(Names().file("a/../../b<script>")) == 16
