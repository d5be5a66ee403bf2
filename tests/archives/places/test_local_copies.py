"""Copies of whole remote files: bounded, shared by processes, never half."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cvm_batch.archives.places import local_copies as module
from cvm_batch.archives.places.disk import DiskFile
from cvm_batch.archives.places.files import FileStamp
from cvm_batch.archives.places.local_copies import (
    BYTES_VARIABLE,
    FOLDER_VARIABLE,
    LocalCopies,
    local_copies,
)
from cvm_batch.errors import InputChangedError, OverLimitError, ReadError, UsageError

MIB = 1 << 20


@dataclass
class RemoteFile:
    """An `OpenFile` that counts what is read of it."""

    data: bytes
    opened: FileStamp = field(init=False)
    bytes_read: int = 0
    before_read: Callable[[], None] = lambda: None
    is_changed: bool = False

    def __post_init__(self) -> None:
        self.opened = FileStamp("slide.svs", len(self.data), 1, f"etag-{hash(self.data)}")

    def read_at(self, offset: int, size: int) -> bytes:
        self.before_read()
        self.bytes_read += size
        return self.data[offset : offset + size]

    def check(self) -> None:
        if self.is_changed:
            raise InputChangedError("it changed")

    def close(self) -> None: ...


@pytest.fixture
def copies(tmp_path: Path) -> LocalCopies:
    return LocalCopies(tmp_path / "copies", 10 * MIB, wait_s=0.3)


def held(copies: LocalCopies, uri: str, file: RemoteFile) -> Path:
    """The path of a copy that is not held any more."""
    with copies.hold(uri, file) as path:
        assert path.read_bytes() == file.data
        return path


def files_in(copies: LocalCopies) -> set[str]:
    return {path.name for path in copies.folder.iterdir() if path.name != ".lock"}


def test_a_file_is_brought_once(copies: LocalCopies) -> None:
    file = RemoteFile(os.urandom(9 * MIB + 5))
    path = held(copies, "s3://b/slide.svs", file)
    assert path.suffix == ".svs"
    assert held(copies, "s3://b/slide.svs", file) == path
    assert file.bytes_read == len(file.data)
    assert files_in(copies) == {path.name}


def test_an_empty_file(copies: LocalCopies) -> None:
    held(copies, "s3://b/empty.svs", RemoteFile(b""))


def test_another_version_or_address_is_another_copy(copies: LocalCopies) -> None:
    first, second = RemoteFile(b"first"), RemoteFile(b"other")
    paths = {
        held(copies, "s3://b/a.svs", first),
        held(copies, "s3://b/a.svs", second),
        held(copies, "s3://b/b.svs", first),
    }
    assert len(paths) == 3


def test_holding_a_copy_again_is_no_change_of_it(copies: LocalCopies) -> None:
    file = RemoteFile(b"slide")
    with copies.hold("s3://b/a.svs", file) as path, closing(DiskFile(path)) as reader:
        time.sleep(0.02)
        held(copies, "s3://b/a.svs", file)
        reader.check()


def test_a_file_larger_than_the_bound_is_refused(copies: LocalCopies) -> None:
    file = RemoteFile(bytes(10 * MIB + 1))
    with pytest.raises(OverLimitError, match=BYTES_VARIABLE), copies.hold("s3://b/a.svs", file):
        pass
    assert not file.bytes_read


def test_what_was_held_longest_ago_makes_room(copies: LocalCopies) -> None:
    a, b, c = (RemoteFile(bytes([n]) * 4 * MIB) for n in range(3))
    path_a = held(copies, "s3://b/a.svs", a)
    path_b = held(copies, "s3://b/b.svs", b)
    time.sleep(0.02)
    held(copies, "s3://b/a.svs", a)
    path_c = held(copies, "s3://b/c.svs", c)
    assert files_in(copies) == {path_a.name, path_c.name}
    held(copies, "s3://b/b.svs", b)
    assert b.bytes_read == 8 * MIB
    assert path_b.exists()


def test_what_is_held_stays(copies: LocalCopies) -> None:
    a, b, c = (RemoteFile(bytes([n]) * 4 * MIB) for n in range(3))
    with copies.hold("s3://b/a.svs", a) as path:
        held(copies, "s3://b/b.svs", b)
        held(copies, "s3://b/c.svs", c)
        assert path.read_bytes() == a.data
    assert a.bytes_read == 4 * MIB
    assert len(files_in(copies)) == 2


def test_no_room_beside_what_is_held(copies: LocalCopies) -> None:
    a, b = RemoteFile(bytes(6 * MIB)), RemoteFile(b"1" * 6 * MIB)
    with copies.hold("s3://b/a.svs", a) as path:
        with (
            pytest.raises(ReadError, match="slides that are being read"),
            copies.hold("s3://b/b.svs", b),
        ):
            pass
        assert files_in(copies) == {path.name}
    held(copies, "s3://b/b.svs", b)


def test_room_is_awaited(copies: LocalCopies) -> None:
    patient = replace(copies, wait_s=20)
    a, b = RemoteFile(bytes(6 * MIB)), RemoteFile(b"1" * 6 * MIB)
    with ThreadPoolExecutor(1) as pool:
        with patient.hold("s3://b/a.svs", a):
            waiting = pool.submit(held, patient, "s3://b/b.svs", b)
            time.sleep(0.3)
            assert not waiting.done()
        waiting.result(10)


def test_a_copy_that_is_being_written_is_counted(copies: LocalCopies) -> None:
    writing, written = threading.Event(), threading.Event()

    def wait() -> None:
        writing.set()
        written.wait(10)

    a, b = RemoteFile(bytes(6 * MIB), before_read=wait), RemoteFile(b"1" * 6 * MIB)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held, copies, "s3://b/a.svs", a)
        assert writing.wait(10)
        with pytest.raises(ReadError, match="being read"), copies.hold("s3://b/b.svs", b):
            pass
        written.set()
        first.result(10)


def test_threads_that_want_the_same_file_bring_it_once(copies: LocalCopies) -> None:
    file = RemoteFile(os.urandom(3 * MIB))
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: held(copies, "s3://b/a.svs", file), range(32)))
    assert len(paths) == 1
    assert file.bytes_read == len(file.data)


def test_threads_that_push_each_other_out_all_get_theirs(copies: LocalCopies) -> None:
    files = [RemoteFile(os.urandom(MIB)) for _ in range(12)]
    narrow = replace(copies, max_bytes=5 * MIB, wait_s=30)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: held(narrow, f"s3://b/{n % 12}", files[n % 12]), range(96)))
    assert sum(path.stat().st_size for path in narrow.folder.iterdir()) <= 5 * MIB


def test_nothing_is_renamed_while_somebody_counts(
    copies: LocalCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is missed since its name changes meanwhile would let another one in."""
    narrow = replace(copies, max_bytes=2 * MIB, wait_s=30)
    files = [RemoteFile(os.urandom(MIB)) for _ in range(3)]
    counting, counted = threading.Event(), module._files

    def slowly(folder: Path) -> list[tuple[Path, os.stat_result]]:
        names = sorted(path.name for path in folder.iterdir())
        counting.set()
        time.sleep(0.5)
        assert sorted(path.name for path in folder.iterdir()) == names
        return counted(folder)

    with narrow.hold("s3://b/0", files[0]), ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            held, narrow, "s3://b/1", RemoteFile(bytes(MIB), before_read=counting.wait)
        )
        while len(files_in(narrow)) < 2:
            time.sleep(0.01)
        monkeypatch.setattr(module, "_files", slowly)
        second = pool.submit(held, narrow, "s3://b/2", files[2])
        first.result()
        second.result()


def test_a_change_while_it_is_copied_leaves_nothing(copies: LocalCopies) -> None:
    file = RemoteFile(bytes(MIB), is_changed=True)
    with pytest.raises(InputChangedError), copies.hold("s3://b/a.svs", file):
        pass
    assert not files_in(copies)


def test_a_connection_that_breaks_leaves_nothing(copies: LocalCopies) -> None:
    def fail() -> None:
        raise ReadError("the connection broke")

    with (
        pytest.raises(ReadError, match="the connection broke"),
        copies.hold("s3://b/a.svs", RemoteFile(bytes(MIB), before_read=fail)),
    ):
        pass
    assert not files_in(copies)


def test_a_full_disk_is_told_with_what_to_do(
    copies: LocalCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        pytest.raises(ReadError, match=rf"No space left.*{FOLDER_VARIABLE}"),
        copies.hold("s3://b/a.svs", RemoteFile(bytes(MIB))),
    ):
        pass
    assert not files_in(copies)


def test_errors_of_whoever_holds_a_copy_are_theirs(copies: LocalCopies) -> None:
    with pytest.raises(OSError, match="mine"), copies.hold("s3://b/a", RemoteFile(b"1")):
        raise OSError("mine")


def test_a_copy_that_was_cut_short_is_brought_anew(copies: LocalCopies) -> None:
    file = RemoteFile(b"whole" * 100)
    path = held(copies, "s3://b/a.svs", file)
    os.truncate(path, 7)
    assert held(copies, "s3://b/a.svs", file) == path


def test_a_killed_process_leaves_nothing_that_is_used(copies: LocalCopies) -> None:
    """It dies while it writes a copy and holds another: both are free again."""
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from cvm_batch.archives.places.local_copies import LocalCopies
        from tests.archives.places.test_local_copies import RemoteFile

        copies = LocalCopies(Path({str(copies.folder)!r}), 10 << 20)
        die = lambda: os.kill(os.getpid(), signal.SIGKILL)
        with copies.hold("s3://b/a.svs", RemoteFile(bytes(4 << 20))):
            with copies.hold("s3://b/b.svs", RemoteFile(b"b" * (4 << 20), before_read=die)):
                pass
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    left = files_in(copies)
    assert sorted(name.startswith(".") for name in left) == [False, True]
    file = RemoteFile(b"c" * 9 * MIB)
    path = held(copies, "s3://b/c.svs", file)
    assert files_in(copies) == {path.name}


def test_what_is_not_ours_is_not_removed(copies: LocalCopies) -> None:
    copies.folder.mkdir(mode=0o700)
    (copies.folder / "notes.txt").write_bytes(b"mine")
    for number in range(4):
        held(copies, f"s3://b/{number}.svs", RemoteFile(bytes([number]) * 4 * MIB))
    assert (copies.folder / "notes.txt").read_bytes() == b"mine"


def test_a_folder_that_others_may_write_to_is_refused(copies: LocalCopies) -> None:
    copies.folder.mkdir()
    copies.folder.chmod(0o777)
    with pytest.raises(UsageError, match=FOLDER_VARIABLE), copies.hold("s3://b/a", RemoteFile(b"")):
        pass


def test_a_link_in_place_of_the_folder_is_refused(copies: LocalCopies, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    copies.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"), copies.hold("s3://b/a", RemoteFile(b"")):
        pass


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(BYTES_VARIABLE, "1234")
    found = local_copies()
    assert found.folder.parent == tmp_path
    assert found.max_bytes == 1234


@pytest.mark.parametrize("value", ["0", "-5", "much", "1e9"])
def test_senseless_bounds_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(BYTES_VARIABLE, value)
    with pytest.raises(UsageError, match=BYTES_VARIABLE):
        local_copies()
