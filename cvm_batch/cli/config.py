"""Options from files: a TOML table for each command, and the command line wins.

    [submit]
    slides = ["/data/slides"]
    model = "nightly"
    out = "/data/results"
    until = "05:30"

Read in this order, the later file winning, option by option: /etc/cvm-batch/config.toml,
~/.config/cvm-batch/config.toml, and the one that --config or CVM_BATCH_CONFIG names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cvm_batch.cli.console import STDOUT, print_json
from cvm_batch.errors import ExitCode, UsageError

CONFIG_VARIABLE = "CVM_BATCH_CONFIG"
_SYSTEM = Path("/etc/cvm-batch/config.toml")
_OWN = Path(".config", "cvm-batch", "config.toml")
#: Options whose value may be a secret: it is set or not.
_SECRET = frozenset({"notify_webhook"})


@dataclass(frozen=True)
class Config:
    """What the files say."""

    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By command and by parameter, as click's ``default_map`` takes them."""
    origin: dict[tuple[str, str], Path] = field(default_factory=dict)
    """The file that each comes from."""

    @classmethod
    def read(cls, group: click.Group, named: Path | None) -> Config:
        """All files that there are; ``named`` must be there. Raises UsageError."""
        found = cls()
        standard = [path for path in (_SYSTEM, Path.home() / _OWN) if path.is_file()]
        for path in [*standard, *([named] if named else [])]:
            for command, name, value in _entries(group, path):
                found.options.setdefault(command, {})[name] = value
                found.origin[command, name] = path
        return found


def _entries(group: click.Group, path: Path) -> Iterator[tuple[str, str, Any]]:
    for command_name, table in _tables(path).items():
        command = group.get_command(click.Context(group), command_name)
        if command is None or not isinstance(table, dict):
            raise UsageError(
                f"{path}: [{command_name}] is no command of cvm-batch. Write a table for each "
                "command, as [submit], and its options without dashes before them."
            )
        parameters = _parameters(command)
        for key, value in table.items():
            name = parameters.get(key.replace("-", "_"))
            if name is None:
                known = ", ".join(sorted(one.replace("_", "-") for one in parameters))
                raise UsageError(f"{path}: [{command_name}] has no option {key!r}. It has {known}.")
            yield command_name, name, value


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"The configuration {path} cannot be read: {error.strerror}. Check --config and "
            f"{CONFIG_VARIABLE}."
        ) from error
    except ValueError as error:
        raise UsageError(
            f"The configuration {path} is not TOML: {error}. Mend that line."
        ) from error


def _parameters(command: click.Command) -> dict[str, str]:
    """Names of click's parameters by what they are called on the command line."""
    named: dict[str, str] = {}
    for parameter in command.params:
        assert parameter.name is not None
        options = parameter.opts if isinstance(parameter, click.Option) else [parameter.name]
        for option in options:
            named[option.lstrip("-").replace("-", "_")] = parameter.name
    return named


@click.group("config")
def config_group() -> None:
    """Configuration files."""


@config_group.command(context_settings={"ignore_unknown_options": True})
@click.argument("command_name", metavar="[COMMAND]", default="submit")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(
    context: click.Context, command_name: str, arguments: tuple[str, ...], as_json: bool
) -> ExitCode:
    """Print which options hold for COMMAND (submit), and where each comes from.

    Further arguments are taken as the command's own.
    """
    group = context.find_root().command
    assert isinstance(group, click.Group)
    config: Config = context.find_root().obj
    command = group.get_command(context, command_name)
    if command is None:
        raise click.UsageError(f"No such command {command_name!r}.")
    inner = command.make_context(
        command_name,
        list(arguments),
        default_map=config.options.get(command_name, {}),
        resilient_parsing=True,  # what is required may be missing here
    )
    rows = [
        (_shown_name(parameter), *_held(parameter, inner, config, command_name))
        for parameter in command.params
        if parameter.name in inner.params
    ]
    if as_json:
        print_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return ExitCode.COMPLETE
    from rich.table import Table

    table = Table("option", "value", "from", box=None, pad_edge=False)
    for name, value, origin in rows:
        table.add_row(name, _told(value), origin)
    STDOUT.print(table)
    return ExitCode.COMPLETE


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value in (None, {}) else str(value)


def _shown_name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return (parameter.name or "").upper()
    return max(parameter.opts, key=len)


def _held(
    parameter: click.Parameter, context: click.Context, config: Config, command: str
) -> tuple[Any, str]:
    """A parameter's value as it was given, and where that comes from."""
    name = parameter.name or ""
    source = context.get_parameter_source(name)
    value = context.params[name]
    if name in _SECRET and value:
        value = "(set)"
    match source:
        case ParameterSource.COMMANDLINE:
            return value, "command line"
        case ParameterSource.ENVIRONMENT:
            return value, f"environment, {parameter.envvar}"
        case ParameterSource.DEFAULT_MAP:
            return value, str(config.origin[command, name])
        case _:
            return value if value != () else None, "default"
