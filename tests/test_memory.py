"""Memory that a process has freed is not asked of the kernel again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cvm_batch.memory import let_children_keep_freed_memory

#: A batch of 3 MiB after the other, beside a thread that has an arena of its own.
_SCRIPT = """
import resource, sys, threading
import numpy as np
from cvm_batch.memory import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def work():
    for _ in range(200):
        np.ones(24 << 20, np.uint8)
thread = threading.Thread(target=work)
thread.start()
thread.join()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **variables: str) -> int:
    """Pages that the kernel had to give, and to clear, for the second half of the work."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments],
        env={**plain, "NUMPY_MADVISE_HUGEPAGE": "0", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_pages_are_asked_of_the_kernel_once() -> None:
    let = dict[str, str]()
    let_children_keep_freed_memory(let)
    given_back = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert given_back > 200 * 1_000, "else this test shows nothing"
    assert faults("keep") < given_back / 20
    assert faults(**let) < given_back / 20
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > given_back / 2, "who sets it has it"


def test_variables_that_somebody_has_set_are_left_alone() -> None:
    environment = {"MALLOC_ARENA_MAX": "4"}
    let_children_keep_freed_memory(environment)
    assert environment == {"MALLOC_ARENA_MAX": "4"}
