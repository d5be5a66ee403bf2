"""What a refused request is to a slide."""

from __future__ import annotations

from cvm_batch.archives.places.files import changed
from cvm_batch.errors import ReadError, SlideError
from cvm_batch.remote.errors import is_denied, status_of, told


def refusal(place: object, error: Exception, tries: int) -> SlideError:
    """What a request that failed for good is to the slide.

    Nothing of the client's own message is in it: it may quote credentials.
    """
    status = status_of(error)
    # A range that the file does not have any more: it became shorter.
    if status in (412, 416) or isinstance(error, FileExistsError):
        return changed(place)
    if is_denied(error):
        return ReadError(
            f"{place} cannot be read: the server refuses access. Check the credentials in the "
            "environment, and what they may read and list; a further submit tries again."
        )
    times = "once" if tries == 1 else f"{tries} times"
    return ReadError(
        f"{place} cannot be read, tried {times}: {told(error)}. Check the address and "
        "the connection; a further submit tries again."
    )
