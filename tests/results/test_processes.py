"""Processes, told apart and found to be gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cvm_batch.results import processes
from cvm_batch.results.processes import Process

SCRIPT = """
import dataclasses, json
from cvm_batch.results.processes import Process
print(json.dumps(dataclasses.asdict(Process.this())), flush=True)
input()
"""


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], Process]]:
    """Another process of this machine, and what it says of itself."""
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as popen:
        assert popen.stdout is not None
        yield popen, Process(**json.loads(popen.stdout.readline()))
        popen.kill()


def test_this_process_lives() -> None:
    this = Process.this()
    assert this.pid == os.getpid()
    assert this == Process.this()
    assert this.lives()
    assert not this.is_gone()


def test_another_process_lives_until_it_is_killed(
    other: tuple[subprocess.Popen[str], Process],
) -> None:
    popen, process = other
    assert process.lives()
    popen.send_signal(signal.SIGSTOP)
    assert process.lives(), "stopped is not gone"
    popen.kill()
    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_gone(), "though nobody has waited for it"
    popen.wait()
    assert process.is_gone()


def test_a_pid_that_was_given_again_is_another_process() -> None:
    this = Process.this()
    assert replace(this, started=this.started - 1).is_gone()


@pytest.mark.parametrize("change", [{"host": "x"}, {"boot_id": "x"}, {"pid_namespace": 1}])
def test_nothing_is_known_of_processes_elsewhere(change: dict[str, object]) -> None:
    elsewhere = replace(Process.this(), started=0, **change)  # type: ignore[arg-type]
    assert elsewhere.lives() is None
    assert not elsewhere.is_gone()


def test_a_process_that_is_hidden_is_not_gone(
    other: tuple[subprocess.Popen[str], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, where /proc is mounted with hidepid."""
    popen, process = other
    monkeypatch.setattr(processes, "_look_up", lambda pid: None)
    assert process.lives() is None
    assert not process.is_gone()
    popen.kill()
    popen.wait()
    assert process.is_gone()
