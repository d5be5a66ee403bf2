"""Notices to real servers: delivered, tried again, given up in time; no secret in what is told."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.errors import UsageError
from cvm_batch.notices import mail as mailing
from cvm_batch.notices.mail import Mail, Security, SmtpServer
from cvm_batch.notices.message import Message
from cvm_batch.notices.sending import Channel, Notices, Patience
from cvm_batch.notices.webhook import Webhook
from tests.notices import servers

SUMMARY: dict[str, Any] = {
    "run_id": "20260131T220000Z-1a2b3c4d",
    "exit_code": 3,
    "started_at": "2026-01-31T22:00:00+00:00",
    "finished_at": "2026-02-01T05:00:00+00:00",
    "model": {"name": "tiny", "digest": "d" * 64},
    "precision": "fp16",
    "backend": "torch-eager",
    "versions": {"cvm_batch": "0.1.0"},
    "slides": {"planned": 1200, "complete": 1198, "incomplete": 0, "failed": 2}
    | {"settled_complete": 7, "settled_incomplete": 0, "settled_failed": 0},
    "cells": {"expected": 9, "classified": 1_234_567, "unreadable": 2},
    "reasons": {"bad_format": 2},
    "tiles_per_second": 987.6,
    "audit": {"entry": 12, "digest": "a" * 64},
    "slide_names": "pseudonyms",
    "not_complete": [
        {"slide_id": f"slide-{n:016x}", "status": "failed", "reason": "bad_format"}
        for n in range(60)
    ],
}
PASSWORD = "hunter2-SECRET"
QUICK = Patience(answer=0.4, pauses=(0.05, 0.05), total=3.0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def sent(
    *channels: Channel, patience: Patience = QUICK
) -> tuple[list[dict[str, Any]], Sequence[str]]:
    told: list[str] = []
    outcomes = Notices(channels, tell=told.append, patience=patience).send(SUMMARY)
    assert "SECRET" not in str((outcomes, told))
    return outcomes, told


def mail_to(port: int, *recipients: str, host: str = "127.0.0.1", **more: Any) -> Mail:
    server = SmtpServer(
        host=host,
        port=port,
        **{"security": Security.NONE, "sender": "cvm-batch@lab.example"} | more,
    )
    return Mail(recipients or ("lead@lab.example",), server)


# Delivered


def test_a_webhook_gets_the_summary() -> None:
    with servers.web_server() as server:
        outcomes, told = sent(Webhook(server.url))
    assert outcomes == [
        {
            "kind": "webhook",
            "to": server.url.removesuffix("/hook/SECRET-TOKEN"),
            "attempts": 1,
            "delivered": True,
            "error": None,
        }
    ]
    assert told == []
    (posted,) = server.posted
    assert posted["summary"] == SUMMARY
    assert posted["text"].startswith("cvm-batch: finished, but some slides are not complete")
    assert server.headers[0]["Content-Type"] == "application/json"


def test_a_mail_says_how_the_night_was() -> None:
    with servers.smtp_server() as server:
        outcomes, _ = sent(mail_to(server.port, "lead@lab.example", "it@lab.example"))
    assert outcomes[0]["delivered"]
    (mail,) = server.mails
    assert server.recipients == [["lead@lab.example", "it@lab.example"]]
    assert mail["Subject"] == (
        "cvm-batch: finished, but some slides are not complete (exit code 3); "
        "1,198 complete, 2 failed"
    )
    assert mail["From"] == "cvm-batch@lab.example"
    text = mail.get_content().replace("\r\n", "\n")
    assert "1,234,567 classified, 2 unreadable, 988 tiles/s" in text
    assert "1,200 to classify, 7 dealt with by earlier runs" in text
    assert "  2 bad_format\n  slide-0000000000000000: failed, bad_format\n" in text
    assert "  and 10 more\n" in text
    assert f"entry 12, {'a' * 64}" in text
    assert "$" not in text
    assert "not a medical device" in text


def test_both_at_once() -> None:
    with servers.web_server() as web, servers.smtp_server() as smtp:
        outcomes, _ = sent(Webhook(web.url), mail_to(smtp.port))
    assert [outcome["delivered"] for outcome in outcomes] == [True, True]


def test_a_login_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    pem = servers.write_certificate(tmp_path / "lab.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with servers.smtp_server(tls=pem, auth=True) as server:
        secure = {"security": Security.STARTTLS, "user": "night", "password": PASSWORD}
        outcomes, _ = sent(mail_to(server.port, host="localhost", **secure))
        assert outcomes[0]["delivered"], outcomes
        assert len(server.logins) == len(server.mails) == 1
        monkeypatch.delenv("SSL_CERT_FILE")
        outcomes, _ = sent(mail_to(server.port, host="localhost", **secure))
    assert not outcomes[0]["delivered"], "a certificate that nobody vouches for"
    assert len(server.logins) == 1, "no password went to it"


def test_no_password_goes_where_tls_is_refused() -> None:
    with servers.smtp_server(auth=True) as server:
        secure = {"security": Security.STARTTLS, "user": "night", "password": PASSWORD}
        outcomes, _ = sent(mail_to(server.port, host="localhost", **secure))
    assert (outcomes[0]["delivered"], outcomes[0]["error"]) == (False, "SMTPNotSupportedError")
    assert server.logins == server.mails == []


# Tried again


@pytest.mark.parametrize("code", [500, 502, 503, 429])
def test_a_webhook_that_fails_for_a_passing_reason_is_tried_again(code: int) -> None:
    with servers.web_server(code, code, 204) as server:
        outcomes, told = sent(Webhook(server.url))
    assert (outcomes[0]["delivered"], outcomes[0]["attempts"]) == (True, 3)
    assert told == []
    assert len(server.posted) == 3


def test_a_mail_that_is_put_off_is_tried_again() -> None:
    with servers.smtp_server(refuse={"RCPT": "451 try later"}, refuse_times=1) as server:
        outcomes, _ = sent(mail_to(server.port))
    assert (outcomes[0]["delivered"], outcomes[0]["attempts"]) == (True, 2)
    assert len(server.mails) == 1


# Not delivered


@pytest.mark.parametrize(("code", "attempts"), [(500, 3), (400, 1), (401, 1), (404, 1), (410, 1)])
def test_a_webhook_that_refuses(code: int, attempts: int) -> None:
    with servers.web_server(code) as server:
        outcomes, (told,) = sent(Webhook(server.url))
    assert (outcomes[0]["delivered"], outcomes[0]["attempts"]) == (False, attempts)
    assert outcomes[0]["error"] == f"it answered {code}"
    assert told.startswith("The webhook notice to http://127.0.0.1:")
    assert f"was not delivered: it answered {code}." in told


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_webhook_is_not_followed_elsewhere(code: int) -> None:
    with (
        servers.web_server() as elsewhere,
        servers.web_server(code, location=elsewhere.url) as server,
    ):
        outcomes, _ = sent(Webhook(server.url))
    assert outcomes[0]["error"] == f"it answered {code}"
    assert elsewhere.posted == []


@pytest.mark.parametrize(
    ("refuse", "attempts", "error"),
    [
        ({"AUTH": f"535 no such password as {PASSWORD}"}, 1, "535 (SMTPAuthenticationError)"),
        ({"MAIL": f"550 {PASSWORD}"}, 1, "550 (SMTPSenderRefused)"),
        ({"RCPT": f"550 {PASSWORD}"}, 1, "550 (all recipients)"),
        ({"RCPT": "451 later"}, 3, "451 (all recipients)"),
        ({"DATA": "554 no"}, 1, "554 (SMTPDataError)"),
        ({"EHLO": "500 what", "HELO": "500 what"}, 1, "500 (SMTPHeloError)"),
    ],
)
def test_a_mail_server_that_refuses(refuse: dict[str, str], attempts: int, error: str) -> None:
    with servers.smtp_server(refuse=refuse, auth=True) as server:
        outcomes, _ = sent(mail_to(server.port, user="night", password=PASSWORD))
    assert (outcomes[0]["delivered"], outcomes[0]["attempts"]) == (False, attempts)
    assert outcomes[0]["error"] == f"the server answered {error}"
    assert server.mails == []


def test_one_recipient_of_two_is_refused() -> None:
    with servers.smtp_server(refuse={"RCPT": "550 unknown"}, refuse_times=1) as server:
        outcomes, _ = sent(mail_to(server.port, "gone@lab.example", "lead@lab.example"))
    assert outcomes[0]["error"] == "1 of 2 recipients were refused"
    assert server.recipients == [["lead@lab.example"]]


def test_where_nobody_listens() -> None:
    port = servers.free_port()
    outcomes, told = sent(Webhook(f"http://127.0.0.1:{port}/SECRET"), mail_to(port))
    assert [outcome["attempts"] for outcome in outcomes] == [3, 3]
    assert {outcome["error"] for outcome in outcomes} == {"Connection refused"}
    assert len(told) == 2


def test_a_name_that_does_not_exist() -> None:
    outcomes, _ = sent(Webhook("https://nowhere.invalid/SECRET"), mail_to(25, host="no.invalid"))
    assert [outcome["delivered"] for outcome in outcomes] == [False, False]


@pytest.mark.parametrize("drip", [b"", b"2", b"220-lab\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_server_that_hangs_or_drips_costs_no_more_than_the_patience(drip: bytes) -> None:
    patience = Patience(answer=0.3, pauses=(0.05, 0.05), total=1.5)
    with servers.hanging_server(drip=drip) as port:
        started = time.monotonic()
        outcomes, told = sent(
            Webhook(f"http://127.0.0.1:{port}/SECRET"), mail_to(port), patience=patience
        )
        assert time.monotonic() - started < patience.total + 1
    assert [outcome["delivered"] for outcome in outcomes] == [False, False]
    assert len(told) == 2
    assert all(outcome["error"] for outcome in outcomes)


def test_a_server_that_talks_nonsense() -> None:
    with servers.hanging_server(drip=b"SECRET " * 1000 + b"\r\n") as port:
        outcomes, _ = sent(Webhook(f"http://127.0.0.1:{port}/"), mail_to(port))
    assert [outcome["delivered"] for outcome in outcomes] == [False, False]


def test_no_channel_no_notice() -> None:
    assert sent() == ([], [])


# Refused before anything is sent


@pytest.mark.parametrize(
    "url",
    [
        "",
        "lab.example/SECRET",
        "ftp://lab.example/SECRET",
        "file:///etc/passwd",
        "https:///SECRET",
        "https://user:SECRET@lab.example/",
        "https://lab.example/a b SECRET",
        "https://lab.example/SECRET\r\nX-Header: 1",
        "https://lab.example:port/SECRET",
        "https://[lab/SECRET",
        "https://läb.example/SECRET",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="--notify-webhook must begin") as refused:
        Webhook(url)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["", "lead", "a@b@c", "a b@c", "lead@lab\nBcc: x@y", "<a@b>", "a@b,c@d", "läad@lab.example"],
)
def test_a_mail_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="is no mail address"):
        mail_to(25, address)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOST": "mx"}, ("mx", 587, "starttls")),
        ({"HOST": "mx:2525"}, ("mx", 2525, "starttls")),
        ({"HOST": "mx", "SECURITY": "tls"}, ("mx", 465, "tls")),
        ({"HOST": "mx", "SECURITY": "none"}, ("mx", 25, "none")),
        ({"HOST": "[::1]:99"}, ("::1", 99, "starttls")),
        ({"HOST": "::1"}, ("::1", 587, "starttls")),
    ],
)
def test_the_server_of_the_environment(
    environment: dict[str, str], expected: tuple[str, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"CVM_BATCH_SMTP_{name}", value)
    server = SmtpServer.from_environment()
    assert (server.host, server.port, server.security) == expected


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "needs the SMTP server's name in CVM_BATCH_SMTP_HOST"),
        ({"HOST": "mx", "SECURITY": "ssl"}, "must be one of starttls, tls, none"),
        ({"HOST": "mx", "FROM": "nobody"}, "CVM_BATCH_SMTP_FROM: 'nobody' is no mail address"),
        ({"HOST": "mx", "SECURITY": "none", "USER": "a", "PASSWORD": PASSWORD}, "in clear"),
    ],
)
def test_an_environment_that_does_not_do(
    environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"CVM_BATCH_SMTP_{name}", value)
    with pytest.raises(UsageError, match=told) as refused:
        SmtpServer.from_environment()
    assert PASSWORD not in str(refused.value)


def test_a_password_is_shown_nowhere() -> None:
    server = SmtpServer(host="mx", port=1, user="a", password=PASSWORD)
    assert PASSWORD not in repr(server)
    assert mailing.PASSWORD_VARIABLE == "CVM_BATCH_SMTP_PASSWORD"


def test_slides_that_were_left_are_told_of() -> None:
    slides = {**SUMMARY["slides"], "failed": 0, "fresh": 3}
    left = Message(SUMMARY | {"exit_code": 0, "slides": slides})
    assert left.title.endswith("1,198 complete, 3 left as they had just changed")
    assert "dealt with by earlier runs, 3 left as they had just changed" in left.body()
    assert "just changed" not in Message(SUMMARY).title
