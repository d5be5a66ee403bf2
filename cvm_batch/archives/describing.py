"""What a slide is, found out in a process of its own: opening may crash a native decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

from cvm_batch.archives.address import SlideAddress
from cvm_batch.archives.archive import SlideInfo
from cvm_batch.archives.formats import identity_of, open_archive
from cvm_batch.archives.opening import OpenOptions
from cvm_batch.archives.places.files import as_slide_error
from cvm_batch.cpus import usable_cpus
from cvm_batch.errors import SlideError, UsageError
from cvm_batch.isolation import Done, run_isolated

#: Listing half a million files on a busy share takes minutes, not more.
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a slide before a pixel is read; one of info and error is None."""

    address: SlideAddress
    info: SlideInfo | None = None
    error: SlideError | None = None
    identity: str | None = None
    """None where not even the slide's files could be listed."""


def describe_all(
    addresses: Iterable[SlideAddress], options: OpenOptions, *, jobs: int | None = None
) -> Iterator[Description]:
    """Describe slides, several at once, in the order given.

    A slide that crashes or hangs its reader has that as its error. Raises UsageError.
    """
    outcomes = run_isolated(
        partial(_describe, options=options),
        addresses,
        jobs=jobs or usable_cpus(),
        timeout=_TIMEOUT_SECONDS,
        name=lambda address: address.uri,
    )
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Done):
                yield outcome.result
            elif isinstance(outcome.error, SlideError):
                # The reader crashed or hung; listing the slide's files needs no decoder.
                address, error = outcome.item, outcome.error
                yield Description(
                    address=address, error=error, identity=_identity(address, options)
                )
            else:
                raise outcome.error


def _describe(address: SlideAddress, options: OpenOptions) -> Description:
    try:
        with closing(open_archive(address, options)) as archive:
            info = archive.describe()
    except UsageError:  # of the run, not of this slide
        raise
    except Exception as error:
        told = as_slide_error(error, address.uri)
        return Description(address=address, error=told, identity=_identity(address, options))
    return Description(address=address, info=info, identity=info.identity)


def _identity(address: SlideAddress, options: OpenOptions) -> str | None:
    """So that a broken slide is tried again when somebody has touched it, not before."""
    with suppress(Exception):  # whatever it is, the slide has failed already
        return identity_of(address, options)
    return None
