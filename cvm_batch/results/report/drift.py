"""Whether a night looks like the nights before it, in words.

A figure is compared with the median of up to 30 earlier nights of the same model, in units of
their spread: 1.4826 times the median absolute deviation, which is the standard deviation where
nights scatter normally, and which one odd night does not change. Each figure has a least
spread, as nights that happened to be alike must not make a harmless difference loud.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

#: Earlier nights that count, and without which nothing is judged.
MOST_NIGHTS = 30
LEAST_NIGHTS = 5
#: Spreads away from the median from which a figure is unusual, and out of line.
UNUSUAL = 2.0
OUT_OF_LINE = 3.5
#: Makes the median absolute deviation a standard deviation.
_NORMAL = 1.4826
#: Where all nights had nothing, and a share of nothing is no spread.
_TINY = 1e-9


class Level(StrEnum):
    NOT_JUDGED = "not judged"
    STEADY = "as usual"
    UNUSUAL = "unusual"
    OUT_OF_LINE = "out of line"


@dataclass(frozen=True, kw_only=True)
class Night:
    """What a run saw in its complete slides, each cell counting the same."""

    run_id: str
    slides: int
    cells: int
    abnormal: float | None
    """Share of cells in the primary group."""
    confidence: float | None
    brightness: float | None
    focus: float | None
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def mix(self) -> Mapping[str, float]:
        """Shares of the classes; they sum to 1, or there are none."""
        total = sum(self.classes.values())
        return {name: n / total for name, n in self.classes.items()} if total else {}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure that is watched."""

    key: str
    name: str
    least_spread: float
    relative: bool = False
    """Whether ``least_spread`` is a share of the median."""
    advice: str


MEASURES = (
    Measure(
        key="mix",
        name="Class mix",
        least_spread=0.02,
        advice="See which classes grew below. It may be the patients of this night, or a "
        "change of stain, scanner or cell detection: look at a few slides by eye.",
    ),
    Measure(
        key="abnormal",
        name="Abnormal share",
        least_spread=0.005,
        advice="It may be the patients of this night. If brightness or focus moved as well, "
        "suspect the stain or the scanner before the patients.",
    ),
    Measure(
        key="confidence",
        name="Confidence",
        least_spread=0.01,
        advice="A model that is less sure than usual often sees images unlike those it was "
        "trained on: check stain, scanner and scale.",
    ),
    Measure(
        key="brightness",
        name="Brightness",
        least_spread=3.0,
        advice="Check the staining batch, the scanner's lamp and its white balance.",
    ),
    Measure(
        key="focus",
        name="Focus",
        least_spread=0.08,
        relative=True,
        advice="Check the scanner's focus and the cover slips; a new stain or another "
        "compression of the images changes this figure, too.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measure tonight."""

    measure: Measure
    level: Level
    value: float | None
    """None where tonight does not tell; of the class mix, the share of cells in other classes
    than usual."""
    usual: float | None
    """The median of the earlier nights."""
    spread: float | None
    """What one unit of ``off`` is."""
    earlier: Sequence[float]
    """Oldest first."""

    @property
    def off(self) -> float | None:
        """Spreads above the median; below it where negative."""
        if self.value is None or self.usual is None or not self.spread:
            return None
        return (self.value - self.usual) / self.spread


@dataclass(frozen=True, kw_only=True)
class Verdict:
    level: Level
    """That of the worst finding."""
    sentence: str
    findings: Sequence[Finding]
    nights: int
    """Earlier nights that were compared with."""
    usual_mix: Mapping[str, float]
    """Medians of the earlier nights by class."""


def judge(tonight: Night, earlier: Sequence[Night]) -> Verdict:
    """``earlier``: nights of the same model, oldest first; those without a cell do not count."""
    compared = [night for night in earlier if night.cells][-MOST_NIGHTS:]
    usual_mix = _usual_mix(compared)
    findings = [_find(measure, tonight, compared, usual_mix) for measure in MEASURES]
    level = max((found.level for found in findings), key=list(Level).index)
    return Verdict(
        level=level,
        sentence=_sentence(tonight, findings, level, len(compared)),
        findings=findings,
        nights=len(compared),
        usual_mix=usual_mix,
    )


def _find(
    measure: Measure, tonight: Night, earlier: Sequence[Night], usual_mix: Mapping[str, float]
) -> Finding:
    value = _value(measure, tonight, usual_mix) if earlier or measure.key != "mix" else None
    values = [x for night in earlier if (x := _value(measure, night, usual_mix)) is not None]
    usual = spread = None
    level = Level.NOT_JUDGED
    if values:
        usual = median(values)
        least = measure.least_spread * (abs(usual) if measure.relative else 1)
        spread = max(_NORMAL * median(abs(x - usual) for x in values), least, _TINY)
    if value is not None and usual is not None and spread and len(values) >= LEAST_NIGHTS:
        off = (value - usual) / spread
        # A mix can only be too far from the usual one, never too near.
        level = _level(max(off, 0) if measure.key == "mix" else abs(off))
    return Finding(
        measure=measure, level=level, value=value, usual=usual, spread=spread, earlier=values
    )


def _level(off: float) -> Level:
    if off >= OUT_OF_LINE:
        return Level.OUT_OF_LINE
    return Level.UNUSUAL if off >= UNUSUAL else Level.STEADY


def _value(measure: Measure, night: Night, usual_mix: Mapping[str, float]) -> float | None:
    if measure.key == "mix":
        return _distance(night.mix, usual_mix) if night.mix else None
    value: float | None = getattr(night, measure.key)
    return value


def _distance(mix: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Half the sum of differences: the share of cells that are in other classes."""
    return sum(abs(mix.get(c, 0) - other.get(c, 0)) for c in sorted({*mix, *other})) / 2


def _usual_mix(nights: Sequence[Night]) -> Mapping[str, float]:
    mixes = [night.mix for night in nights if night.mix]
    names = dict.fromkeys(name for mix in mixes for name in mix)
    medians = {name: median(mix.get(name, 0.0) for mix in mixes) for name in names}
    total = sum(medians.values())
    return {name: share / total for name, share in medians.items()} if total else {}


def _sentence(tonight: Night, findings: Sequence[Finding], level: Level, nights: int) -> str:
    if not tonight.cells:
        return "Not judged: no slide was completed in this run."
    if level is Level.NOT_JUDGED:
        return (
            f"Not judged yet: there {_are(nights, 'earlier night')} of this model to compare "
            f"with, and {LEAST_NIGHTS} are needed."
        )
    if level is Level.STEADY:
        return f"As usual: this night looks like the {nights} before it."
    moved = [found for found in findings if found.level not in (Level.STEADY, Level.NOT_JUDGED)]
    told = _and([_moved(found) for found in moved])
    after = (
        "Have a look before the results are used."
        if level is Level.OUT_OF_LINE
        else "Worth an eye; not yet out of line."
    )
    return f"{told[0].upper()}{told[1:]} than in the {nights} nights before. {after}"


def _moved(found: Finding) -> str:
    if found.measure.key == "mix":
        return "the class mix is further from the usual one"
    higher = found.off is not None and found.off > 0
    return f"{found.measure.name.lower()} is {'higher' if higher else 'lower'}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _are(n: int, what: str) -> str:
    return f"is {n} {what}" if n == 1 else f"are {n or 'no'} {what}s"
