"""A run on a Ray cluster, from within: what `cvm-batch submit --address http://...` hands over.

    python jobs/screen.py --settings JSON                     as submit sends it
    python jobs/screen.py --config FILE [options of submit]   as a Kubernetes RayJob has it

Asks every node whether it sees what the run needs, and runs. Ends with 0 once the run has ended
in order, also where slides are not complete: else Kubernetes would run the night again for one bad
slide. The log's last line has the exit code of a submit.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

# What lies beside this file, under whichever name Python runs it (docs/decisions/0002).
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

import cvm_batch
from cvm_batch.cli import cli
from cvm_batch.cli.config import CONFIG_VARIABLE, Config
from cvm_batch.cli.notifying import notices_for
from cvm_batch.cli.screening import for_the_log, print_summary, run_settings
from cvm_batch.cli.submit import asked_by_arguments
from cvm_batch.cluster.ending import Ending
from cvm_batch.errors import UsageError
from cvm_batch.model.registry import find_bundle
from cvm_batch.notices.sending import Notices
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.layout import RunName
from cvm_batch.screening.run import bundle_everywhere
from cvm_batch.screening.settings import Settings
from cvm_batch.screening.visibility import Needs
from nodes import check_nodes
from telling import told


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.option("--settings", "as_json", help="The run's settings, as its manifest holds them.")
@click.option(
    "--config",
    envvar=CONFIG_VARIABLE,
    type=click.Path(path_type=Path),
    help="A TOML file of options.",
)
@click.option("--notify-mail", multiple=True)
@click.option("--client-version", help="Of the cvm-batch that submitted.")
@click.option("--log-json", is_flag=True)
@click.option("--no-report", is_flag=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(
    as_json: str | None,
    config: Path | None,
    notify_mail: tuple[str, ...],
    client_version: str | None,
    log_json: bool,
    no_report: bool,
    arguments: tuple[str, ...],
) -> int:
    """Screen, and say on the last line how it ended."""

    def work() -> Ending:
        _check_version(client_version)
        if as_json:
            settings = Settings.from_json(json.loads(as_json))
            webhook = os.environ.get("CVM_BATCH_NOTIFY_WEBHOOK")
            notices = notices_for(notify_webhook=webhook, notify_mail=notify_mail)
            return _screen(settings, notices, log_json=log_json, with_report=not no_report)
        mails = [word for mail in notify_mail for word in ("--notify-mail", mail)]
        defaults = Config.read(cli, config).options.get("submit", {})
        asked = asked_by_arguments([*mails, *arguments], defaults)
        return _screen(
            asked.settings,
            asked.notices,
            log_json=log_json or asked.log_json,
            with_report=asked.with_report and not no_report,
        )

    return told(work)


def _screen(settings: Settings, notices: Notices, *, log_json: bool, with_report: bool) -> Ending:
    # Ray names the cluster in the environment of a job. Here, not in the executor, since the
    # nodes are asked before anything else.
    ray.init(address="auto", log_to_driver=False, logging_level="error")
    settings = replace(settings, address="auto")
    bundle, results = find_bundle(settings.model), ResultsFolder(settings.out)
    results.prepare()
    where = bundle_everywhere(settings.model, bundle)
    probe = RunName.new(datetime.now(UTC)).run_id
    check_nodes(Needs.of(settings.inputs, where, bundle.digest, results, probe))
    summary = run_settings(settings, notices, log_json=log_json, with_report=with_report)
    if not log_json:  # which has told all of it, and may not name slides
        print_summary(summary, settings.out)
    told_of = for_the_log(summary, log_json=log_json)
    return Ending(exit_code=summary.exit_code, summary=told_of.to_json())


def _check_version(client: str | None) -> None:
    if client not in (None, cvm_batch.__version__):
        raise UsageError(
            f"The nodes have cvm-batch {cvm_batch.__version__}, and {client} was submitted with. "
            "Use an image of that version, or take the code along: --ship-code."
        )


if __name__ == "__main__":
    sys.exit(main(standalone_mode=False))
