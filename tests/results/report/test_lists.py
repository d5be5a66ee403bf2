"""Rows on pages of bounded length, none lost, none twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cvm_batch.results.report.charts import MARGIN, line, scatter
from cvm_batch.results.report.lists import Row, Section, pages_of


def section(key: str, count: int) -> Section:
    rows = [
        Row(stem=f"{key}{n}", name="", whole_name="", status="complete", reason=None, detail=None)
        for n in range(count)
    ]
    return Section(key=key, title=key, about="", rows=rows, total=count)


@given(sizes=st.lists(st.integers(1, 30), max_size=6), most=st.integers(1, 12))
def test_every_row_is_on_one_page_in_its_order(sizes: list[int], most: int) -> None:
    sections = [section(str(n), size) for n, size in enumerate(sizes)]
    pages = pages_of(sections, most)
    shown = [row.stem for page in pages for piece in page for row in piece.rows]
    assert shown == [row.stem for one in sections for row in one.rows]
    lengths = [sum(len(piece.rows) for piece in page) for page in pages]
    assert all(length == most for length in lengths[:-1])
    assert lengths[-1] <= most
    begun = [piece.key for page in pages for piece in page if not piece.goes_on]
    assert begun == [one.key for one in sections]


def test_nothing_is_one_empty_page() -> None:
    assert pages_of([]) == [[]]


places = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(st.tuples(places, places), min_size=1, max_size=20))
def test_marks_lie_on_the_drawing(xy: list[tuple[float, float]]) -> None:
    drawn = scatter(xy)
    assert drawn is not None
    assert len(drawn.points) == len(xy)
    for x, y in drawn.points:
        assert MARGIN - 1 <= x <= drawn.width - MARGIN + 1
        assert MARGIN - 1 <= y <= drawn.height - MARGIN + 1


def test_places_are_drawn_to_scale_and_nothing_without_any() -> None:
    drawn = scatter([(0, 0), (30_000, 0), (30_000, 15_000)])
    assert drawn is not None
    (x0, y0), (x1, _), (_, y2) = drawn.points
    assert x1 - x0 == 2 * (y2 - y0)
    assert scatter([]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_a_line_stays_within_its_drawing(values: list[float]) -> None:
    drawn = line(values, (0.0, 1.0))
    assert drawn is not None
    assert all(0 <= x <= drawn.width and 0 <= y <= drawn.height for x, y in drawn.points)
    assert drawn.band is not None
    assert drawn.band[1] >= 0
