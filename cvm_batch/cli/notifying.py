"""The options of commands that run, for notices at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cvm_batch.cli.console import STDERR
from cvm_batch.texts import printable

if TYPE_CHECKING:
    from cvm_batch.notices.sending import Channel, Notices

F = TypeVar("F", bound=Callable[..., Any])


def notice_options(command: F) -> F:
    """``notify_webhook`` and ``notify_mail``, which `notices_for` takes."""
    options = [
        click.option(
            "--notify-webhook",
            envvar="CVM_BATCH_NOTIFY_WEBHOOK",
            metavar="URL",
            help="Post the summary there at the end; an address with a secret in it belongs "
            "into CVM_BATCH_NOTIFY_WEBHOOK.",
        ),
        click.option(
            "--notify-mail",
            multiple=True,
            metavar="ADDRESS",
            help="Mail the summary at the end, through the server in CVM_BATCH_SMTP_HOST; may be "
            "given repeatedly.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def notices_for(*, notify_webhook: str | None, notify_mail: Sequence[str]) -> Notices:
    """Raises UsageError where an address or the environment is not fit for use."""
    from cvm_batch.notices.mail import Mail, SmtpServer
    from cvm_batch.notices.sending import Notices
    from cvm_batch.notices.webhook import Webhook
    from cvm_batch.pseudonyms import Pseudonyms

    channels: list[Channel] = []
    if notify_webhook:
        channels.append(Webhook(notify_webhook))
    if notify_mail:
        channels.append(Mail(notify_mail, SmtpServer.from_environment()))
    pseudonyms = Pseudonyms.from_environment() if channels else None
    return Notices(channels, pseudonyms, tell=lambda line: STDERR.print(printable(line)))
