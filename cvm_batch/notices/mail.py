"""A notice as mail, handed to the laboratory's SMTP server."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import ssl
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate
from enum import StrEnum

from cvm_batch.errors import UsageError
from cvm_batch.notices.message import Message
from cvm_batch.notices.sending import UndeliveredError

HOST_VARIABLE = "CVM_BATCH_SMTP_HOST"
USER_VARIABLE = "CVM_BATCH_SMTP_USER"
PASSWORD_VARIABLE = "CVM_BATCH_SMTP_PASSWORD"  # noqa: S105 - a variable's name
SECURITY_VARIABLE = "CVM_BATCH_SMTP_SECURITY"
FROM_VARIABLE = "CVM_BATCH_SMTP_FROM"

_ADDRESS = re.compile(r"[!-;=?A-~]+@[!-;=?A-~]+")  # one word without <, > and a second @
_LASTING = 500
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Security(StrEnum):
    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


_PORTS = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}


@dataclass(frozen=True, kw_only=True)
class SmtpServer:
    """Where mail is handed in; raises UsageError at construction."""

    host: str
    port: int
    security: Security = Security.STARTTLS
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sender: str = ""

    def __post_init__(self) -> None:
        if self.user and self.security is Security.NONE and self.host not in _LOOPBACK:
            raise UsageError(
                f"{SECURITY_VARIABLE}=none would send {PASSWORD_VARIABLE} in clear over the "
                "network. Use starttls or tls, or a server that needs no password."
            )

    @classmethod
    def from_environment(cls) -> SmtpServer:
        """Raises UsageError where the environment does not say enough, or nonsense."""
        environment = os.environ
        given = environment.get(HOST_VARIABLE, "")
        if not given:
            raise UsageError(f"--notify-mail needs the SMTP server's name in {HOST_VARIABLE}.")
        try:
            security = Security(environment.get(SECURITY_VARIABLE, Security.STARTTLS))
        except ValueError:
            known = ", ".join(Security)
            raise UsageError(f"{SECURITY_VARIABLE} must be one of {known}.") from None
        host, _, port = given.rpartition(":") if re.search(r"[^:]:\d+$", given) else (given, "", "")
        return cls(
            host=host.strip("[]"),
            port=int(port or _PORTS[security]),
            security=security,
            user=environment.get(USER_VARIABLE),
            password=environment.get(PASSWORD_VARIABLE),
            sender=_checked(
                environment.get(FROM_VARIABLE) or f"cvm-batch@{socket.gethostname()}", FROM_VARIABLE
            ),
        )


class Mail:
    """One mail to some people."""

    kind = "mail"

    def __init__(self, recipients: Sequence[str], server: SmtpServer) -> None:
        """Raises UsageError."""
        self._recipients = [_checked(each, "--notify-mail") for each in recipients]
        self._server = server
        self.to = f"{len(recipients)} by {server.host}"

    def deliver(self, message: Message, timeout: float) -> None:
        mail = self._compose(message)
        try:
            with closing(self._connect(timeout)) as smtp:
                if self._server.user:
                    smtp.login(self._server.user, self._server.password or "")
                refused = smtp.send_message(mail)
                with suppress(OSError, smtplib.SMTPException):  # it has the mail
                    smtp.quit()
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            raise _refusal(min(codes), "all recipients") from None
        except smtplib.SMTPResponseException as error:
            raise _refusal(error.smtp_code, type(error).__name__) from None
        except smtplib.SMTPServerDisconnected:
            raise UndeliveredError("the server hung up", passing=True) from None
        except smtplib.SMTPException as error:
            raise UndeliveredError(type(error).__name__, passing=False) from None
        if refused:
            why = f"{len(refused)} of {len(self._recipients)} recipients were refused"
            raise UndeliveredError(why, passing=False)

    def _connect(self, timeout: float) -> smtplib.SMTP:
        server, context = self._server, ssl.create_default_context()
        name = socket.gethostname()  # its full name may take a name server that hangs
        if server.security is Security.TLS:
            return smtplib.SMTP_SSL(
                server.host, server.port, name, timeout=timeout, context=context
            )
        smtp = smtplib.SMTP(server.host, server.port, name, timeout)
        if server.security is Security.STARTTLS:
            try:
                smtp.starttls(context=context)
            except BaseException:
                smtp.close()
                raise
        return smtp

    def _compose(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"] = message.title
        mail["From"] = self._server.sender
        mail["To"] = ", ".join(self._recipients)
        mail["Date"] = formatdate(localtime=True)
        # The same on each try: a second copy shows as one mail.
        mail["Message-ID"] = f"<{message.summary['run_id']}@cvm-batch.invalid>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.body())
        return mail


def _refusal(code: int, what: str) -> UndeliveredError:
    return UndeliveredError(f"the server answered {code} ({what})", passing=code < _LASTING)


def _checked(address: str, where: str) -> str:
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"{where}: {address!r} is no mail address such as lab@example.org.")
    return address
