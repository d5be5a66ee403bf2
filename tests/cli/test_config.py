"""Options from TOML files, and where each comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cvm_batch.cli import cli
from cvm_batch.cli.config import Config
from cvm_batch.errors import UsageError


@pytest.fixture
def own(home: Path) -> Any:
    path = home / ".config" / "cvm-batch" / "config.toml"
    path.parent.mkdir(parents=True)
    yield path
    path.unlink()
    path.parent.rmdir()


def shown(*arguments: str, **environment: str) -> dict[str, Any]:
    result = run(*arguments, **environment)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.output))


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, arguments, env=environment)


def test_the_command_line_wins_over_the_named_file_over_ones_own(own: Path, tmp_path: Path) -> None:
    own.write_text('[submit]\nmodel = "old"\nslides = ["/data/slides"]\nbatch-size = 4\n')
    named = tmp_path / "night.toml"
    named.write_text('[submit]\nmodel = "nightly"\nout = "/data/results"\nfollow = false\n')
    found = shown(
        *("--config", str(named), "config", "show", "--json", "submit", "--", "--out", "/tmp/r"),
        CVM_BATCH_NOTIFY_WEBHOOK="https://hook/secret",
    )
    assert {name: tuple(found[name].values()) for name in ("SLIDES", "--model", "--out")} == {
        "SLIDES": (["/data/slides"], str(own)),
        "--model": ("nightly", str(named)),
        "--out": ("/tmp/r", "command line"),
    }
    assert found["--batch-size"] == {"value": 4, "from": str(own)}
    assert found["--follow"] == {"value": False, "from": str(named)}
    assert found["--executor"] == {"value": "ray", "from": "default"}
    assert found["--notify-webhook"] == {
        "value": "(set)",
        "from": "environment, CVM_BATCH_NOTIFY_WEBHOOK",
    }


def test_a_file_suffices(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'[status]\ntarget = "{tmp_path}"\n')
    result = run("status", CVM_BATCH_CONFIG=str(tmp_path / "c.toml"))
    assert "holds no runs" in str(result.exception)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[submit]\nmodle = 'x'\n", r"\[submit\] has no option 'modle'.*model"),
        ("[sumbit]\n", r"\[sumbit\] is no command"),
        ("model = 'x'\n", r"\[model\] is no command"),
        ("[submit\n", "is not TOML"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=told) as refused:
        Config.read(cli, path)
    assert str(path) in str(refused.value)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Config.read(cli, tmp_path / "none.toml")
