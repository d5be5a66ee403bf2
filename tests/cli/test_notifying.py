"""``--notify-webhook`` and ``--notify-mail`` as a user types them, to real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cvm_batch.cli import cli
from cvm_batch.errors import CommitError, UsageError
from cvm_batch.model.bundle import Bundle
from cvm_batch.pseudonyms import KEY_FILE_VARIABLE, KEY_VARIABLE, Pseudonyms
from cvm_batch.results.exporting.summary import schema
from cvm_batch.results.folder import ResultsFolder
from cvm_batch.results.manifest import manifests
from cvm_batch.results.verifying import verify_results
from tests.archives.making import write_folder
from tests.conftest import coloured_tiles
from tests.notices.servers import free_port, hanging_server, smtp_server, web_server
from tests.results.nights import content

KEY = "0123456789abcdef-key"
SECRET = "hunter2-SECRET"


class Submitting:
    """Runs ``submit`` in this process, and looks for secrets in all that comes of it."""

    def __init__(self, patch: pytest.MonkeyPatch, bundle: Bundle, folder: Path) -> None:
        self.out = folder / "results"
        self._patch = patch
        self._bundle = bundle
        patch.setenv("no_proxy", "*")
        patch.delenv(KEY_VARIABLE, raising=False)
        patch.delenv(KEY_FILE_VARIABLE, raising=False)

    def __call__(self, slides: Path, *more: str, **environment: str) -> Result:
        for name, value in environment.items():
            self._patch.setenv(name, value)
        command = ["submit", slides, "--model", self._bundle.path, "--out", self.out]
        command += ["--executor", "local", *more]
        ended = CliRunner().invoke(cli, list(map(str, command)), standalone_mode=False)
        assert SECRET not in ended.output + str(ended.exception)
        kept = content(self.out) if self.out.exists() else {}
        assert SECRET.encode() not in b"".join(kept.values())
        return ended

    def manifest(self) -> dict[str, Any]:
        (manifest,) = manifests(ResultsFolder(self.out))
        return dict(manifest)


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, tmp_path: Path) -> Submitting:
    return Submitting(monkeypatch, tiny_bundle, tmp_path)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A slide that fails at once, of a name that says much."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "Mustermann.zip").write_bytes(b"PK no zip")
    return tmp_path / "slides"


def test_webhook_and_mail_tell_of_a_run_s_end(broken: Path, submit: Submitting) -> None:
    with web_server() as web, smtp_server(auth=True) as smtp:
        ended = submit(
            broken,
            "--notify-mail",
            "lead@lab.example",
            CVM_BATCH_NOTIFY_WEBHOOK=f"{web.url}/{SECRET}",
            CVM_BATCH_SMTP_HOST=f"127.0.0.1:{smtp.port}",
            CVM_BATCH_SMTP_SECURITY="none",
            CVM_BATCH_SMTP_USER="night",
            CVM_BATCH_SMTP_PASSWORD=SECRET,
            CVM_BATCH_PSEUDONYM_KEY=KEY,
        )
    assert ended.return_value == 3
    (posted,) = web.posted
    jsonschema.validate(posted["summary"], schema())
    pseudonym = Pseudonyms(KEY.encode()).of("Mustermann.zip")
    assert [one["slide_id"] for one in posted["summary"]["not_complete"]] == [pseudonym]
    (mail,) = smtp.mails
    assert pseudonym in mail.get_content()
    assert "Mustermann" not in json.dumps(posted) + mail.as_string()
    manifest = submit.manifest()
    assert [notice["delivered"] for notice in manifest["notices"]] == [True, True]
    assert posted["summary"]["audit"] == manifest["audit"]
    assert KEY.encode() not in b"".join(content(submit.out).values())
    assert verify_results(submit.out).findings == ()


def test_without_a_key_no_slide_is_named(broken: Path, submit: Submitting) -> None:
    with web_server() as web:
        submit(broken, "--notify-webhook", web.url)
    (posted,) = web.posted
    assert (posted["summary"]["slide_names"], posted["summary"]["not_complete"]) == ("withheld", [])
    assert "Mustermann" not in json.dumps(posted)


def test_notices_that_fail_change_no_exit_code(broken: Path, submit: Submitting) -> None:
    with web_server(403) as web:
        ended = submit(
            broken,
            "--notify-mail",
            "lead@lab.example",
            CVM_BATCH_NOTIFY_WEBHOOK=f"{web.url}/{SECRET}",
            CVM_BATCH_SMTP_HOST=f"127.0.0.1:{free_port()}",
        )
    assert ended.return_value == 3
    assert "was not delivered: it answered 403." in ended.stderr
    assert "The mail notice to 1 by 127.0.0.1 was not delivered: Connection" in ended.stderr
    manifest = submit.manifest()
    assert (manifest["state"], manifest["exit_code"]) == ("finished", 3)
    assert [notice["attempts"] for notice in manifest["notices"]] == [1, 3]
    assert [bool(notice["error"]) for notice in manifest["notices"]] == [True, True]


def test_an_aborted_run_is_told_of(submit: Submitting, tmp_path: Path) -> None:
    write_folder(tmp_path / "slides" / "a", coloured_tiles(range(11)))
    ResultsFolder(submit.out).prepare()
    (submit.out / "tops").write_text("not a folder")
    with web_server() as web:
        ended = submit(tmp_path / "slides", "--notify-webhook", web.url)
    assert isinstance(ended.exception, CommitError)
    (posted,) = web.posted
    assert posted["text"].startswith("cvm-batch: the run was aborted (exit code 1)")
    jsonschema.validate(posted["summary"], schema())
    assert str(tmp_path) not in json.dumps(posted)
    assert submit.manifest()["notices"][0]["delivered"]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--notify-mail", "lead@lab.example"), "needs the SMTP server's name"),
        (("--notify-webhook", f"lab.example/{SECRET}"), "must begin with https://"),
    ],
)
def test_what_cannot_be_notified_is_told_before_the_run(
    broken: Path, submit: Submitting, option: tuple[str, str], told: str
) -> None:
    error = submit(broken, *option).exception
    assert isinstance(error, UsageError)
    assert told in str(error)
    assert not submit.out.exists()


@pytest.mark.campaign
def test_a_server_that_hangs_holds_up_nobody_for_long(broken: Path, submit: Submitting) -> None:
    """The whole patience, for once: three answers of ten seconds, and the pauses."""
    with hanging_server() as port:
        ended = submit(broken, "--notify-webhook", f"http://127.0.0.1:{port}")
    assert ended.return_value == 3
    assert submit.manifest()["notices"][0]["delivered"] is False
