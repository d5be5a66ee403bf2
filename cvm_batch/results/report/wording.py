"""Plain sentences: how a run ended, what a reason means, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvm_batch.errors import ExitCode, Reason
from cvm_batch.results.manifest import RunState


@dataclass(frozen=True)
class Advice:
    """On one reason for which a slide is not complete."""

    title: str
    meaning: str
    what_to_do: str


ADVICE: Mapping[Reason, Advice] = {
    Reason.BAD_FORMAT: Advice(
        "Not a slide archive",
        "The file is not what its name says, or its layout is none that can be read.",
        "Open it with `cvm-batch inspect`; export it again in a format that the README lists.",
    ),
    Reason.BAD_SCALE: Advice(
        "Unknown or wrong scale",
        "The slide does not say how large its pixels are, or its cells are of another size than "
        "those that the model knows.",
        "Give the scale with --mpp if you are sure of it; else export the slide again with it.",
    ),
    Reason.CHECKSUM_MISMATCH: Advice(
        "Damaged file",
        "What was read differs from the checksum that was recorded of it.",
        "Copy the file again from the scanner or from a backup. If that is damaged too, scan "
        "the slide again.",
    ),
    Reason.DECODER_CRASHED: Advice(
        "Image decoder crashed",
        "The image data made the decoder crash; the file is probably damaged.",
        "Open it in its viewer. Copy or export it again, then run `cvm-batch retry`.",
    ),
    Reason.EMPTY: Advice(
        "No cells",
        "The archive holds no cell at all.",
        "See whether cell detection found anything on this slide; an empty slide is no "
        "negative slide.",
    ),
    Reason.INPUT_CHANGED: Advice(
        "Changed while it was read",
        "The file was still being written or was replaced during the run.",
        "Nothing, if it is whole now: the next submit reads it again. Submit later, or use "
        "--settle, if this happens often.",
    ),
    Reason.MISSING_TILES: Advice(
        "Cells are missing",
        "The archive holds fewer cells than its table or manifest says.",
        "Complete the export, or correct the expected number; then submit again.",
    ),
    Reason.NON_FINITE_OUTPUT: Advice(
        "The model gave no number",
        "For some cell the model's output was not a number.",
        "Look at the slide by eye. Run `cvm-batch retry`, if need be with --precision fp32, and "
        "report it if it stays.",
    ),
    Reason.OVER_LIMIT: Advice(
        "Over a safety limit",
        "The archive asks for more memory or files than is allowed of one slide.",
        "See the detail for the limit. A real slide may be exported in smaller parts; anything "
        "else may be a broken or a hostile file.",
    ),
    Reason.READ_ERROR: Advice(
        "Could not be read",
        "The disk, share or object storage did not deliver the file.",
        "Check the storage and the permissions: the next submit tries again by itself.",
    ),
    Reason.REPLICA_LOST: Advice(
        "Worker process was lost",
        "The processes that held this slide ended without an answer, more often than allowed.",
        "The next submit tries again by itself. See the logs for memory or GPU trouble.",
    ),
    Reason.TIMEOUT: Advice(
        "Took too long",
        "Reading or decoding this slide did not come to an end.",
        "Copy the file again, or export it anew, then run `cvm-batch retry`.",
    ),
    Reason.UNREADABLE_TILES: Advice(
        "Some cells unreadable",
        "Some images could not be decoded; all others were classified. Counts are \u201cat "
        "least\u201d.",
        "Export or copy the slide again and submit it. Until then look at it by eye.",
    ),
    Reason.UNSAFE_ARCHIVE: Advice(
        "Unsafe archive",
        "The archive holds paths or links that lead out of it, or is built to exhaust memory.",
        "Do not unpack it. Find out where it comes from, and export the slide again.",
    ),
}
_UNKNOWN = Advice(
    "Another reason",
    "This version does not know the reason that the run recorded.",
    "See the detail, and the version of cvm-batch that the run was made with.",
)


def advice_on(reason: str | None) -> Advice:
    """Also for a reason of a later version."""
    known = reason in list(Reason)
    return ADVICE[Reason(reason)] if known and reason is not None else _UNKNOWN


@dataclass(frozen=True)
class Ending:
    """How a run ended, for people."""

    tone: str
    """``good``, ``mind`` or ``bad``: never the only way to tell."""
    title: str
    sentence: str


def ending_of(manifest: Mapping[str, Any], state: RunState) -> Ending:
    """From the manifest; ``state`` as `live.RunSeen` has it, as a killed run says that it runs."""
    slides = manifest["slides"]
    lacking = slides["incomplete"] + slides["failed"]
    left = slides["planned"] - slides["complete"] - lacking
    if state is RunState.RUNNING:
        return Ending("mind", "Still running", "The run goes on: this is what it has so far.")
    if state is RunState.INTERRUPTED:
        return Ending(
            "bad",
            "Interrupted",
            f"The run went without a word, as when it is killed or the power fails. {_left(left)}",
        )
    if state is RunState.ABORTED:
        return Ending(
            "bad",
            "Aborted",
            f"The run could not go on. What it had committed is shown here. {_left(left)}",
        )
    if state is RunState.STOPPED:
        return Ending("mind", "Stopped before the end", f"As it was asked to. {_left(left)}")
    fresh = slides.get("fresh", 0)  # as of later versions
    if not slides["planned"]:
        if fresh:
            dealt_with = "Every other slide had been dealt with before."
            return Ending("mind", "Nothing was taken", f"{_fresh(fresh)} {dealt_with}")
        return Ending("good", "Nothing was new", "Every slide had been dealt with before.")
    if lacking:
        are = "slide is" if lacking == 1 else "slides are"
        return Ending(
            "mind",
            f"Finished, {lacking:,} {are} not complete",
            "No such slide counts as negative: each needs what its reason asks for.",
        )
    if manifest["exit_code"] == ExitCode.NOT_ALL_COMPLETE:
        return Ending(
            "mind",
            "Finished, all new slides complete",
            "Slides of earlier runs are still not complete: they are listed with the failures.",
        )
    if fresh:
        return Ending(
            "good",
            "Finished, all slides that were taken are complete",
            f"Every cell of these was read. {_fresh(fresh)}",
        )
    return Ending("good", "Finished, all slides complete", "Every cell of every slide was read.")


def _fresh(count: int) -> str:
    slides = "1 slide" if count == 1 else f"{count:,} slides"
    return f"{slides} had just changed: the next submit takes what has settled by then."


def _left(left: int) -> str:
    if left <= 0:
        return "No slide is left over."
    slides = "1 slide is left" if left == 1 else f"{left:,} slides are left"
    return f"{slides}: submit again to go on, finished ones are not repeated."


LISTS: Mapping[str, tuple[str, str]] = {
    "urgent_incomplete": (
        "Look at these first",
        "Not read whole, and suspicious cells were found. Counts are \u201cat least\u201d.",
    ),
    "ranked": ("Ranked", "Complete, the most suspicious first."),
    "unranked": ("Complete, not ranked", "Their model does not give what is ranked by."),
    "scant": (
        "Too few cells",
        "Complete, but with too few cells to be called negative.",
    ),
    "incomplete": (
        "Not read whole",
        "Nothing suspicious in what could be read, which says nothing of the rest.",
    ),
    "failed": ("Failed", "Not looked at. No cell of these slides counts."),
}
"""Title and explanation of each list of a worklist, in its order."""

_GROUPS = {
    "asc_us_plus": "ASC-US+",
    "lsil_plus": "LSIL+",
    "hsil_plus": "HSIL+",
    "paper_abnormal": "Paper\u2019s five",
}


def group_name(group: str) -> str:
    """A class group as laboratories write it."""
    return _GROUPS.get(group, group)
