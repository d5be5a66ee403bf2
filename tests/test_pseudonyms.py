"""Pseudonyms: the same under one key, another under another, and nothing of the name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvm_batch.errors import UsageError
from cvm_batch.pseudonyms import KEY_FILE_VARIABLE, KEY_VARIABLE, Pseudonyms

KEY = b"0123456789abcdef"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)


def test_the_known_value_of_one_name() -> None:
    """As `printf a/b.svs | openssl dgst -sha256 -hmac 0123456789abcdef` has it."""
    digest = "700d838e2b3be9dc1f6bf58fe02eb76a4a9b05f0db28b5067d4f286f52247f71"
    assert Pseudonyms(KEY).digest("a/b.svs") == digest
    assert Pseudonyms(KEY).of("a/b.svs") == f"slide-{digest[:16]}"


def test_names_and_keys_have_pseudonyms_of_their_own() -> None:
    names = ["a", "b", "a ", "", "\n", "bad\udcff.zip", "n" * 10_000]
    found = [Pseudonyms(key).of(name) for key in (KEY, KEY + b"!") for name in names]
    assert len(set(found)) == len(found)


def test_the_key_comes_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Pseudonyms.from_environment() is None
    (tmp_path / "key").write_bytes(KEY + b"\n")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "key"))
    of_file = Pseudonyms.from_environment()
    monkeypatch.setenv(KEY_VARIABLE, KEY.decode())
    of_variable = Pseudonyms.from_environment()
    assert of_file is not None
    assert of_variable is not None
    assert of_file.of("a") == of_variable.of("a") == Pseudonyms(KEY).of("a")


@pytest.mark.parametrize("key", ["short", "fifteen bytes.."])
def test_a_key_that_can_be_guessed_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(UsageError, match="at least 16") as refused:
        Pseudonyms.from_environment()
    assert key not in str(refused.value)


def test_a_key_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_FILE_VARIABLE, "/nowhere/key")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Pseudonyms.from_environment()
