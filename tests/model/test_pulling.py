"""Registered bundles, and those fetched from elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from cvm_batch.cli.models import models
from cvm_batch.errors import (
    BundleDigestError,
    BundleError,
    BundleNotFoundError,
    SentinelError,
    UsageError,
)
from cvm_batch.model import registry
from cvm_batch.model.bundle import Bundle, write_bundle
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.pulling import pulled
from cvm_batch.model.registry import MODELS_VARIABLE, find_bundle, history, promote, roll_back
from tests.conftest import coloured_tiles


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv(MODELS_VARIABLE, str(folder))
    return folder


@pytest.fixture
def other(tmp_path: Path, tiny_bundle: Bundle, tiny_network: CvmCervix) -> Bundle:
    tiles = coloured_tiles([1, 2], side=32)
    return write_bundle(tmp_path / "other", tiny_bundle.spec, tiny_network, tiles, card="# Other")


def test_a_name_means_what_was_promoted_last(tiny_bundle: Bundle, other: Bundle, own: Path) -> None:
    promote(tiny_bundle, "nightly")
    assert find_bundle("nightly").digest == tiny_bundle.digest
    promote(other, "nightly")
    assert find_bundle("nightly").digest == other.digest
    shutil.rmtree(other.path)  # a copy was kept
    assert find_bundle("nightly").digest == other.digest
    assert [entry.digest for entry in history("nightly")] == [tiny_bundle.digest, other.digest]
    assert history("never") == []
    assert not list((own / "store").glob(".*"))


def test_rolling_back(tiny_bundle: Bundle, other: Bundle) -> None:
    for bundle in (tiny_bundle, other):
        promote(bundle, "nightly")
    roll_back("nightly")
    assert find_bundle("nightly").digest == tiny_bundle.digest
    roll_back("nightly", other.digest[:8])
    assert find_bundle("nightly").digest == other.digest
    assert len(history("nightly")) == 4
    with pytest.raises(BundleNotFoundError, match="no earlier bundle ffff"):
        roll_back("nightly", "ffff")
    with pytest.raises(BundleNotFoundError, match="Nothing was registered as 'never'"):
        roll_back("never")


def test_rolling_back_twice_goes_on_to_what_was_before(
    tiny_bundle: Bundle, other: Bundle, own: Path
) -> None:
    for bundle in (tiny_bundle, other, tiny_bundle):
        promote(bundle, "nightly")
    assert roll_back("nightly").digest == other.digest
    assert roll_back("nightly").digest == tiny_bundle.digest
    with pytest.raises(BundleNotFoundError, match="no earlier bundle"):
        roll_back("nightly")
    promote(other, "nightly")
    assert roll_back("nightly").digest == tiny_bundle.digest
    assert [entry.rolled_back for entry in history("nightly")] == [0, 0, 0, 1, 1, 0, 1]


def test_other_versions_read_what_this_one_writes_and_the_reverse(
    tiny_bundle: Bundle, own: Path
) -> None:
    promote(tiny_bundle, "nightly")
    lines = own / "names.jsonl"
    (told,) = map(json.loads, lines.read_text().splitlines())
    assert set(told) == {"name", "digest", "at", "by"}
    lines.write_text(json.dumps(told | {"why": "of a later version"}) + "\n")
    assert [entry.digest for entry in history("nightly")] == [tiny_bundle.digest]


def test_a_damaged_copy_is_noticed(tiny_bundle: Bundle, own: Path) -> None:
    promote(tiny_bundle, "nightly")
    weights = own / "store" / tiny_bundle.digest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleDigestError):
        find_bundle("nightly")
    with pytest.raises(BundleDigestError):
        promote(tiny_bundle, "again")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "store", "a b", "x" * 101])
def test_names_that_cannot_be(tiny_bundle: Bundle, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a bundle"):
        promote(tiny_bundle, name)


def test_a_changed_history_is_refused(tiny_bundle: Bundle, own: Path) -> None:
    promote(tiny_bundle, "nightly")
    (own / registry._NAMES).write_text("{nonsense\n")
    with pytest.raises(BundleError, match=r"names\.jsonl cannot be read"):
        find_bundle("nightly")


def packed(bundle: Path, path: Path) -> str:
    """Pack a folder in the format that the name says; return the digest."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in bundle.iterdir():
                archive.write(file, f"some/{bundle.name}/{file.name}")
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(bundle, bundle.name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("name", ["b.tar.gz", "b.zip"])
def test_pull_over_http(tmp_path: Path, server: str, tiny_bundle: Bundle, name: str) -> None:
    digest = packed(tiny_bundle.path, tmp_path / "www" / name)
    arguments = ["pull", f"{server}/{name}", "--sha256", digest.upper(), "--name", "fetched"]
    result = CliRunner().invoke(models, arguments, catch_exceptions=False)
    assert f"fetched is {tiny_bundle.digest[:12]}" in result.output
    assert find_bundle("fetched").digest == tiny_bundle.digest


def test_another_file_than_the_digest_says_is_refused(tmp_path: Path, tiny_bundle: Bundle) -> None:
    packed(tiny_bundle.path, tmp_path / "b.zip")
    wrong = pulled(str(tmp_path / "b.zip"), "0" * 64)
    with pytest.raises(BundleDigestError, match="Nothing was registered"), wrong:
        pass
    assert history() == []


def test_what_is_no_archive_of_one_bundle_is_refused(tmp_path: Path, tiny_bundle: Bundle) -> None:
    def refused(path: Path, message: str) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(BundleError, match=message), pulled(str(path), digest):
            pass

    (tmp_path / "b.txt").write_text("hello")
    refused(tmp_path / "b.txt", "neither a tar nor a zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    refused(tmp_path / "none.zip", "holds 0 bundles")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))
    refused(tmp_path / "evil.tar", "cannot be unpacked")
    assert not list(tmp_path.rglob("outside.txt"))
    gone = pulled(str(tmp_path / "gone.zip"), "0" * 64)
    with pytest.raises(BundleError, match="cannot be fetched"), gone:
        pass


def test_promote_verifies_the_sentinels(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "network", _other_weights(Bundle.network))
    with pytest.raises(SentinelError):
        CliRunner().invoke(models, ["promote", str(tiny_bundle.path), "x"], catch_exceptions=False)
    assert history() == []


def _other_weights(load):  # type: ignore[no-untyped-def]
    """As if the device computed with a broken memory."""

    def network(bundle: Bundle) -> CvmCervix:
        found: CvmCervix = load(bundle)
        found.mlp[2].bias.data[0] += 3
        return found

    return network


def test_history_and_rollback_on_the_command_line(tiny_bundle: Bundle, other: Bundle) -> None:
    def call(*arguments: str) -> str:
        result = CliRunner().invoke(models, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    call("promote", str(tiny_bundle.path), "nightly")
    call("promote", str(other.path), "nightly")
    assert f"nightly is {tiny_bundle.digest[:12]} again" in call("rollback", "nightly")
    assert call("history", "nightly").count("nightly") == 3
    assert tiny_bundle.digest in call("history", "--json")
