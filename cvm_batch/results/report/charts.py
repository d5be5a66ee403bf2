"""Where marks lie on a drawing; the templates draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

#: Around the outermost marks, for their circles.
MARGIN = 14.0


@dataclass(frozen=True)
class Scatter:
    """Positions on a slide, drawn to scale: y points down, as on the slide."""

    width: float
    height: float
    points: Sequence[Point]
    """In the drawing's units, in the order given."""
    left: int
    top: int
    right: int
    bottom: int
    """What part of the slide is drawn, in level-0 pixels."""


def scatter(xy: Sequence[Point], *, longest: float = 300, least: float = 120) -> Scatter | None:
    """``xy``: level-0 pixels; None without any."""
    if not xy:
        return None
    xs, ys = [x for x, _ in xy], [y for _, y in xy]
    wide, high = max(max(xs) - min(xs), 1.0), max(max(ys) - min(ys), 1.0)
    scale = longest / max(wide, high)
    width, height = max(wide * scale, least), max(high * scale, least)
    # Centred, where a side is drawn longer than the cells need.
    left, top = MARGIN + (width - wide * scale) / 2, MARGIN + (height - high * scale) / 2
    points = [
        (round(left + (x - min(xs)) * scale, 1), round(top + (y - min(ys)) * scale, 1))
        for x, y in xy
    ]
    return Scatter(
        width=round(width + 2 * MARGIN, 1),
        height=round(height + 2 * MARGIN, 1),
        points=points,
        left=round(min(xs)),
        top=round(min(ys)),
        right=round(max(xs)),
        bottom=round(max(ys)),
    )


@dataclass(frozen=True)
class Line:
    """Figures of one night after the other, the last one tonight's."""

    points: Sequence[Point]
    band: tuple[float, float] | None
    """y and height of what is usual."""
    width: float
    height: float

    @property
    def path(self) -> str:
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)


def line(
    values: Sequence[float],
    usual: tuple[float, float] | None = None,
    *,
    width: float = 260,
    height: float = 64,
) -> Line | None:
    """``values`` oldest first; ``usual``: the lowest and the highest that would be no surprise."""
    if not values:
        return None
    low, high = min(*values, *(usual or values)), max(*values, *(usual or values))
    room = (high - low) or abs(high) or 1.0
    edge = 6.0

    def y_of(value: float) -> float:
        return round(edge + (height - 2 * edge) * (1 - (value - low) / room), 1)

    step = (width - 2 * edge) / max(len(values) - 1, 1)
    points = [(round(edge + at * step, 1), y_of(value)) for at, value in enumerate(values)]
    if len(points) == 1:
        points = [(width - edge, points[0][1])]
    band = None
    if usual is not None:
        band = (y_of(usual[1]), round(y_of(usual[0]) - y_of(usual[1]), 1))
    return Line(points, band, width, height)
