"""``cvm-batch models``: which bundles there are, and what is in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from cvm_batch.cli.console import STDOUT, print_json

if TYPE_CHECKING:
    from cvm_batch.model.bundle import Bundle


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the bundles that are known by name.

    Those shipped with cvm-batch, and those in the folder that the environment variable
    CVM_BATCH_MODELS names (by default ~/.local/share/cvm-batch/models). Every digest is
    verified.
    """
    if context.invoked_subcommand is not None:
        return
    from cvm_batch.model.registry import list_bundles

    listed = list_bundles()
    if as_json:
        print_json(
            [
                {"name": name, "path": path, "digest": getattr(found, "digest", None)}
                | ({"error": str(found)} if isinstance(found, Exception) else {})
                for name, path, found in listed
            ]
        )
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "classes", "precision", "digest", "folder"):
        table.add_column(column, overflow="fold")
    for name, path, found in listed:
        if isinstance(found, Exception):
            table.add_row(name, "", "", f"unusable: {found}", str(path))
        else:
            spec = found.spec
            classes = str(len(spec.class_names))
            table.add_row(name, classes, spec.precision, found.digest[:12], str(path))
    STDOUT.print(table)


@models.command()
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(bundle: str, as_json: bool) -> None:
    """Print classes, groups, sizes and provenance of BUNDLE, a folder or a known name.

    Verifies the digests, and on this machine's CPU the sentinel tiles.
    """
    import torch

    from cvm_batch.model.backends.starting import start_engine
    from cvm_batch.model.network import parameter_count
    from cvm_batch.model.precision import Precision
    from cvm_batch.model.registry import find_bundle

    found = find_bundle(bundle)
    parameters = parameter_count(found.network())
    engine = start_engine(found, device=torch.device("cpu"), precision=Precision.FP32)
    difference = engine.sentinel_difference
    engine.close()
    if as_json:
        print_json(
            found.spec.to_json()
            | {
                "path": found.path,
                "digest": found.digest,
                "parameters": parameters,
                "weights_bytes": found.weights_bytes,
                "sentinel_difference": difference,
            }
        )
    else:
        _print_bundle(found, parameters, difference)


@models.command()
@click.argument("bundle")
@click.argument("name")
def promote(bundle: str, name: str) -> None:
    """Register BUNDLE, a folder or a known name, as NAME: `submit --model NAME` then takes it.

    A copy is kept, and what NAME meant before can be rolled back to. The sentinel tiles are
    verified on this machine's CPU first.
    """
    from cvm_batch.model.registry import find_bundle
    from cvm_batch.model.registry import promote as register

    found = find_bundle(bundle)
    _verify(found)
    entry = register(found, name)
    click.echo(f"{name} is {found.spec.name} {entry.digest[:12]} from now on.")


@models.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(name: str | None, as_json: bool) -> None:
    """List what was registered as NAME, or as any name, the newest last."""
    from dataclasses import asdict

    from cvm_batch.model.registry import history as entries_of

    entries = entries_of(name)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("at (UTC)", "name", "digest", "by", ""):
        table.add_column(column, overflow="fold")
    for entry in entries:
        what = "rolled back" if entry.rolled_back else ""
        table.add_row(entry.at, entry.name, entry.digest[:12], entry.by, what)
    STDOUT.print(table)


@models.command()
@click.argument("name")
@click.option("--to", "digest", metavar="DIGEST", help="Its first digits; default: the one before.")
def rollback(name: str, digest: str | None) -> None:
    """Let NAME mean an earlier bundle again."""
    from cvm_batch.model.registry import roll_back

    entry = roll_back(name, digest)
    click.echo(f"{name} is {entry.digest[:12]} again.")


@models.command()
@click.argument("url")
@click.option("--sha256", required=True, metavar="HEX", help="Of the archive.")
@click.option("--name", metavar="NAME", help="Register it as NAME; default: the bundle's own.")
def pull(url: str, sha256: str, name: str | None) -> None:
    """Fetch a bundle in a tar or zip archive from URL, verify it, and register it.

    URL is a path, http(s)://, s3://, gs:// or az://. The archive's digest, the bundle's digests
    and its sentinel tiles are verified before anything is registered.
    """
    from cvm_batch.model.pulling import pulled
    from cvm_batch.model.registry import promote as register

    with pulled(url, sha256) as found:
        _verify(found)
        entry = register(found, name or found.spec.name)
    click.echo(f"{entry.name} is {entry.digest[:12]} from now on.")


def _verify(bundle: Bundle) -> None:
    """Raises SentinelError where this machine's CPU does not reproduce it."""
    import torch

    from cvm_batch.model.backends.starting import start_engine
    from cvm_batch.model.precision import Precision

    start_engine(bundle, device=torch.device("cpu"), precision=Precision.FP32).close()


def _print_bundle(bundle: Bundle, parameters: int, difference: float) -> None:
    spec = bundle.spec
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("name", spec.name)
    table.add_row("folder", str(bundle.path))
    table.add_row("digest", bundle.digest)
    table.add_row(
        "network",
        f"{spec.architecture}, {parameters:,} parameters",
    )
    table.add_row("weights", f"{bundle.weights_bytes / 2**20:.1f} MiB in {spec.precision}")
    table.add_row("input", f"{spec.preprocessing.input_px} px")
    table.add_row("tile", f"{spec.tile_um} µm" if spec.tile_um else "scale not recorded")
    table.add_row("sentinels", f"reproduced in fp32 within {difference:.1e}")
    table.add_row("classes", ", ".join(spec.class_names))
    for group, members in spec.groups.items():
        primary = " (primary)" if group == spec.primary_group else ""
        table.add_row(f"group {group}{primary}", ", ".join(members))
    for key, value in spec.provenance.items():
        table.add_row(f"provenance {key}", _flat(value))
    STDOUT.print(table)


def _flat(value: object, depth: int = 0) -> str:
    """A nested provenance entry on one line; its depths are for ``--json``."""
    if isinstance(value, (dict, list)) and depth > 1:
        return "…"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(entry, depth + 1)}" for key, entry in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
