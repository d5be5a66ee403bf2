"""``cvm-batch submit``: the main job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cvm_batch.cli.cluster import (
    Handing,
    check_direct,
    follow_to_end,
    hand_over,
    handing_over_options,
)
from cvm_batch.cli.console import STDERR, STDOUT, print_json
from cvm_batch.cli.notifying import notices_for
from cvm_batch.cli.results_root import ResultsRoot
from cvm_batch.cli.screening import (
    for_the_log,
    print_summary,
    screen,
    screening_options,
    settings_of,
    which_slides_options,
)
from cvm_batch.cluster.doors import is_jobs_address
from cvm_batch.errors import ExitCode, UsageError
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.model.bundle import Bundle
    from cvm_batch.notices.sending import Notices
    from cvm_batch.screening.settings import Settings


@click.command()
@click.argument("slides", nargs=-1, required=True)
@click.option("--model", required=True, help="A bundle's folder, or the name of a known one.")
@click.option(
    "--out",
    required=True,
    type=ResultsRoot(),
    help="The results folder, made where there is none: a path, or s3://bucket/results.",
)
@which_slides_options
@screening_options
@click.option("--ship-bundle", is_flag=True, help="Take the bundle along to the cluster's nodes.")
@handing_over_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def submit(slides: tuple[str, ...], as_json: bool, ship_bundle: bool, **options: Any) -> int:
    """Classify every cell of SLIDES that is not classified yet.

    SLIDES are slide archives, folders of them, or manifest tables (.csv, .parquet): folders,
    .zip and .tar files of cell images, zarr archives, and whole-slide images with a cells
    table beside them; paths, or addresses such as s3://bucket/night. Slides that are
    complete in --out under the same model are skipped, so that the same command goes on
    where an earlier run ended.

    With --address http(s)://HOST:PORT the whole run is handed to a Ray cluster by its Jobs API;
    paths are those of its nodes.
    """
    handing = Handing.of(options)
    if is_jobs_address(options["address"]):
        return _hand_over(handing, ship_bundle, as_json, inputs=slides, **options)
    if ship_bundle or handing.ship_code or not handing.follow:
        raise UsageError(
            "--ship-bundle, --ship-code and --detach are for --address http(s)://HOST:PORT: "
            "without it the run's driver is this process."
        )
    check_direct(options["address"], handing)
    summary = screen(inputs=slides, **options)
    if as_json:
        print_json(for_the_log(summary, log_json=options["log_json"]).to_json())
    elif not options["log_json"]:  # which has told all of it, and may not name slides
        print_summary(summary, options["out"])
    return summary.exit_code


class Asked(NamedTuple):
    """What a command line of `submit` asks for."""

    settings: Settings
    notices: Notices
    log_json: bool
    with_report: bool


def asked_by_arguments(arguments: Sequence[str], defaults: Mapping[str, Any]) -> Asked:
    """What a command line of `submit` asks for, for a process that is on a cluster already.

    ``defaults``: options from files. Raises click.ClickException and UsageError.
    """
    with submit.make_context("submit", list(arguments), default_map=defaults) as context:
        options = dict(context.params)
    Handing.of(options)
    for client_only in ("as_json", "ship_bundle"):
        del options[client_only]
    mail, webhook = options.pop("notify_mail"), options.pop("notify_webhook")
    log_json, with_report = options.pop("log_json"), options.pop("with_report")
    settings = settings_of(inputs=options.pop("slides"), **(options | {"address": None}))
    notices = notices_for(notify_webhook=webhook, notify_mail=mail)
    return Asked(settings, notices, log_json, with_report)


def _hand_over(handing: Handing, ship_bundle: bool, as_json: bool, **options: Any) -> int:
    mails, webhook = options.pop("notify_mail"), options.pop("notify_webhook")
    log_json, with_report = options.pop("log_json"), options.pop("with_report")
    if webhook:
        raise UsageError(
            "A webhook's address may be a secret and would stand in the cluster's dashboard: set "
            "CVM_BATCH_NOTIFY_WEBHOOK on the nodes, not here."
        )
    settings, bundle = _for_nodes(settings_of(**options), ship_bundle)
    digest = bundle.digest if bundle else None
    configuration = asdict(settings)
    arguments = ["--settings", json.dumps(configuration, default=str)]
    arguments += ["--client-version", _version()]
    arguments += [word for mail in mails for word in ("--notify-mail", mail)]
    arguments += ["--log-json"] * log_json
    arguments += ["--no-report"] * (not with_report)
    client, submission_id = hand_over(
        options["address"],
        handing,
        "screen",
        arguments,
        {**configuration, "shipped": digest},
        bundle=bundle.path if bundle else None,
        metadata={"out": str(settings.out), "model": settings.model},
    )
    if not handing.follow:
        if as_json:
            print_json({"submission_id": submission_id})
        else:
            STDOUT.print(submission_id)
        return ExitCode.COMPLETE
    say = (lambda line: STDERR.print(printable(line), soft_wrap=True)) if as_json else None
    ending = follow_to_end(client, submission_id, say)
    if as_json and ending.summary is not None:
        print_json(ending.summary)
    return ending.known_code


def _for_nodes(settings: Settings, ship_bundle: bool) -> tuple[Settings, Bundle | None]:
    """The settings as a node reads them, and the bundle where it is to be shipped."""
    from cvm_batch.jobfiles import SHIPPED_BUNDLE
    from cvm_batch.model.registry import find_bundle

    there = replace(settings.absolute(), address=None)
    if not ship_bundle:
        return there, None
    return replace(there, model=SHIPPED_BUNDLE), find_bundle(settings.model)


def _version() -> str:
    import cvm_batch

    return cvm_batch.__version__
