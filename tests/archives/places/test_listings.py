"""Two listings are the same where an identity over them would be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cvm_batch.archives.places.files import FileStamp, Listing, identity

FILES = (FileStamp("a/0", 3, 10), FileStamp("b", 4, 20))


@pytest.mark.parametrize(
    "others",
    [
        FILES,
        FILES[::-1],
        (FileStamp("a/1", 3, 10), FILES[1]),
        (FileStamp("a/0", 4, 10), FILES[1]),
        (FileStamp("a/0", 3, 11), FILES[1]),
        tuple(FileStamp(file.name, file.size, file.mtime_ns, "etag") for file in FILES),
        FILES[:1],
        (*FILES, FileStamp("c", 0, 0)),
        (),
    ],
)
def test_the_same_files_of_the_same_versions(others: Sequence[FileStamp]) -> None:
    first, second = Listing.of(FILES), Listing.of(others)
    assert first.same_as(second) == (identity(first) == identity(second))
    assert first.same_as(second) == (set(FILES) == set(others))


def test_versions_of_objects() -> None:
    first, second = (Listing.of([FileStamp("a", 1, 2, etag)]) for etag in ("x", "y"))
    assert first.same_as(first)
    assert not first.same_as(second)
