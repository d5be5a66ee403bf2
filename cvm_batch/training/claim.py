"""One training in a folder at a time: two would delete each other's checkpoints.

The lock is the kernel's (flock), so that it goes with the process that held it, however that
ended; the file stays, and means nothing.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvm_batch.errors import UsageError

#: Held by the command, from the first file that it writes to the last.
COMMAND = ".command.lock"
#: Held by the process in which the loop runs, or the job that has it run on a cluster: it may
#: outlive the command.
LOOP = ".loop.lock"
_LOG = logging.getLogger(__name__)


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Hold ``what``, COMMAND or LOOP, of the training in ``folder``.

    Raises UsageError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / what).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"Another process trains in {folder}, on this machine or another. Wait for its "
                "end, or end it, and give the command again: it goes on from the last checkpoint."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            _LOG.warning("%s takes no locks (%s): start one training there", folder, error)
        yield
