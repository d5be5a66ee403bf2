"""The error tree and the exit codes.

Every message says what was wrong, where, and what to do. Each class takes one
message, so that an error survives pickling on its way from a replica to the driver.

    CvmBatchError
    ├── UsageError              wrong use or configuration: exit code 2
    │   ├── NoSlidesError
    │   ├── SlideIdCollisionError
    │   ├── ResultsError        the results folder cannot be used
    │   │   └── ResultsInUseError
    │   ├── BundleError         a bundle that cannot be used
    │   │   ├── BundleNotFoundError
    │   │   ├── BundleDigestError
    │   │   ├── SentinelError
    │   │   └── AgreementError
    │   ├── DataSetError        training data that cannot be used
    │   │   └── UnreadableImageError
    │   └── ClusterError        a Ray cluster that cannot be used
    │       ├── OpenClusterError
    │       ├── ClusterUnreachableError
    │       └── SubmissionTakenError
    ├── LostSightError          a run elsewhere, of which nothing was heard any more: exit code 1
    ├── RunAbortedError         the run could not go on: exit code 1
    │   ├── CommitError         a result could not be written
    │   ├── ReplicaHangsError   a replica in this process hangs, and cannot be ended
    │   └── TakenOverError      another run has taken the results folder over
    └── SlideError              one slide failed; the others go on
        └── (one leaf per reason, below)
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process says at its end."""

    COMPLETE = 0
    ABORTED = 1
    USAGE = 2
    NOT_ALL_COMPLETE = 3
    STOPPED = 4


class Reason(StrEnum):
    """Why a slide is not complete, as written to the ``reason`` column."""

    BAD_FORMAT = "bad_format"
    BAD_SCALE = "bad_scale"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    DECODER_CRASHED = "decoder_crashed"
    EMPTY = "empty"
    INPUT_CHANGED = "input_changed"
    MISSING_TILES = "missing_tiles"
    NON_FINITE_OUTPUT = "non_finite_output"
    OVER_LIMIT = "over_limit"
    READ_ERROR = "read_error"
    REPLICA_LOST = "replica_lost"
    TIMEOUT = "timeout"
    UNREADABLE_TILES = "unreadable_tiles"
    UNSAFE_ARCHIVE = "unsafe_archive"


#: Causes that may pass: a further submit tries these slides again by itself. A damaged file
#: may be copied again, and a packed slide's identity is the same then.
PASSING_REASONS = frozenset(
    {Reason.CHECKSUM_MISMATCH, Reason.INPUT_CHANGED, Reason.READ_ERROR, Reason.REPLICA_LOST}
)


class CvmBatchError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code: ClassVar[ExitCode] = ExitCode.ABORTED


class UsageError(CvmBatchError):
    """Wrong use or configuration, found before any slide is touched."""

    exit_code = ExitCode.USAGE


class NoSlidesError(UsageError):
    """The given inputs hold no slide archive."""


class SlideIdCollisionError(UsageError):
    """Two inputs would get the same slide_id."""


class ResultsError(UsageError):
    """The results folder cannot be written or read."""


class ResultsInUseError(ResultsError):
    """Another run holds the results folder."""


class BundleError(UsageError):
    """A bundle that cannot be used."""


class BundleNotFoundError(BundleError):
    """No bundle under that name or path."""


class BundleDigestError(BundleError):
    """A file of the bundle differs from the digest recorded in bundle.json."""


class SentinelError(BundleError):
    """The device does not reproduce the bundle's recorded sentinel outputs."""


class AgreementError(BundleError):
    """A lower precision does not say what fp32 says, or does not hold its numbers."""


class DataSetError(UsageError):
    """Training or evaluation data that cannot be used."""


class UnreadableImageError(DataSetError):
    """One cell's image does not decode; the others of its set do without it."""


class ClusterError(UsageError):
    """A Ray cluster that cannot be used, or does not see what a run needs."""


class OpenClusterError(ClusterError):
    """Others than its users could run code on the cluster, or read the token."""


class ClusterUnreachableError(ClusterError):
    """No answer from the cluster, which may come later."""


class SubmissionTakenError(ClusterError):
    """The cluster has a job of that submission ID already."""


class LostSightError(CvmBatchError):
    """A cluster that was handed a run, and has not answered for long; the run may go on there."""


class RunAbortedError(CvmBatchError):
    """The run could not go on; what was committed stays."""


class CommitError(RunAbortedError):
    """A result could not be written: the disk is full, or the folder is gone."""


class ReplicaHangsError(RunAbortedError):
    """A thread of this process does not come back: leave by os._exit, which waits for none."""


class TakenOverError(RunAbortedError):
    """Another run has taken the results folder over from this one, which seemed dead."""


class SlideError(CvmBatchError):
    """One slide cannot be classified. The run goes on with the others."""

    reason: ClassVar[Reason]


class BadFormatError(SlideError):
    """Not an archive of the kind its name says: wrong dtype, shape, codec or content."""

    reason = Reason.BAD_FORMAT


class BadScaleError(SlideError):
    """How large a pixel is, is not known, absurd, or not what the model was trained with."""

    reason = Reason.BAD_SCALE


class EmptyArchiveError(SlideError):
    """An archive without a single tile."""

    reason = Reason.EMPTY


class ChecksumMismatchError(SlideError):
    """Stored data differ from the checksum recorded with them."""

    reason = Reason.CHECKSUM_MISMATCH


class OverLimitError(SlideError):
    """Sizes beyond what a slide archive can honestly hold, refused before allocating."""

    reason = Reason.OVER_LIMIT


class UnsafeArchiveError(SlideError):
    """Member names, links or codecs that a trustworthy archive does not contain."""

    reason = Reason.UNSAFE_ARCHIVE


class ReadError(SlideError):
    """An input/output error that may pass."""

    reason = Reason.READ_ERROR


class InputChangedError(SlideError):
    """The archive's files changed after the run was planned."""

    reason = Reason.INPUT_CHANGED


class DecoderCrashedError(SlideError):
    """A native decoder ended its process over this slide's data."""

    reason = Reason.DECODER_CRASHED


class DecoderTimeoutError(SlideError):
    """A native decoder did not come back from this slide's data."""

    reason = Reason.TIMEOUT


class NonFiniteOutputError(SlideError):
    """The model returned NaN or infinity for a tile of this slide."""

    reason = Reason.NON_FINITE_OUTPUT


class ReplicaLostError(SlideError):
    """The replicas that held this slide died, more often than is allowed."""

    reason = Reason.REPLICA_LOST
