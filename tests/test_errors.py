"""The error tree: as drawn, picklable, and one reason per leaf."""

from __future__ import annotations

import pickle
import re

import pytest

from cvm_batch import errors
from cvm_batch.errors import CvmBatchError, ExitCode, Reason, SlideError, UsageError

TREE = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, CvmBatchError)
]
LEAVES = [error for error in TREE if issubclass(error, SlideError) and error is not SlideError]


def drawn_tree() -> dict[str, str | None]:
    """Each drawn class and its parent, from the module's docstring."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if drawn := re.match(r"    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)", line):
            depth = len(drawn[1]) // 4
            path = [*path[:depth], drawn[2]]
            parents[drawn[2]] = path[depth - 1] if depth else None
    return parents


def test_tree_is_as_drawn() -> None:
    above_the_leaves = [error for error in TREE if error not in LEAVES]
    parents = {error.__name__: error.__bases__[0].__name__ for error in above_the_leaves}
    assert drawn_tree() == parents | {"CvmBatchError": None}


@pytest.mark.parametrize("error", TREE)
def test_survives_pickling(error: type[CvmBatchError]) -> None:
    original = error("Slide a/b.zarr: chunk 3 is missing. Pack it again.")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(original, protocol))
        assert type(again) is error
        assert str(again) == str(original)
        assert again.args == original.args


@pytest.mark.parametrize("error", TREE)
def test_has_a_sentence_and_the_name_of_an_error(error: type[CvmBatchError]) -> None:
    assert error.__name__.endswith("Error")
    assert (error.__doc__ or "").endswith(".")


@pytest.mark.parametrize("error", LEAVES)
def test_leaf_has_a_reason(error: type[SlideError]) -> None:
    assert error.__bases__ == (SlideError,)
    assert isinstance(error.reason, Reason)


def test_no_two_leaves_share_a_reason() -> None:
    reasons = [error.reason for error in LEAVES]
    assert len(set(reasons)) == len(reasons)


def test_reasons_are_written_as_they_are_named() -> None:
    assert {reason.name.lower(): str(reason) for reason in Reason} == {r: r for r in Reason}


def test_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "COMPLETE": 0,
        "ABORTED": 1,
        "USAGE": 2,
        "NOT_ALL_COMPLETE": 3,
        "STOPPED": 4,
    }


@pytest.mark.parametrize("error", TREE)
def test_exit_code_of_each(error: type[CvmBatchError]) -> None:
    expected = ExitCode.USAGE if issubclass(error, UsageError) else ExitCode.ABORTED
    assert error.exit_code is expected
