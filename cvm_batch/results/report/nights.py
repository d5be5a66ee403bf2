"""What each run saw, added up over its complete slides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from cvm_batch.results.reading import Results
from cvm_batch.results.report.drift import MOST_NIGHTS, Night

#: By the model's digest: another model sees otherwise. A run's identifier begins with its time.
_CHOSEN = """
WITH chosen AS (
    FROM slides_all
    WHERE status = 'complete' AND bundle_digest = $digest AND run_id IN (
        SELECT DISTINCT run_id FROM slides_all
        WHERE status = 'complete' AND bundle_digest = $digest AND run_id <= $run
        ORDER BY run_id DESC LIMIT $nights
    )
)
"""
_FIGURES = """
SELECT
    run_id,
    count(*) AS slides,
    sum(cells_classified)::BIGINT AS cells,
    sum(abnormal_count) / sum(cells_classified) AS abnormal,
    sum(confidence_mean * cells_classified) / sum(cells_classified) AS confidence,
    sum(brightness_mean * cells_classified) / sum(cells_classified) AS brightness,
    sum(focus_mean * cells_classified) / sum(cells_classified) AS focus
FROM chosen GROUP BY run_id ORDER BY run_id
"""
_CLASSES = """
SELECT run_id, entry.key AS class, sum(entry.value)::BIGINT AS cells
FROM (SELECT run_id, unnest(map_entries(class_counts)) AS entry FROM chosen)
GROUP BY ALL ORDER BY ALL
"""


def read_nights(results: Results, run_id: str, bundle_digest: str) -> tuple[Night, Sequence[Night]]:
    """The run's own figures, and those of the runs of that model before it, oldest first.

    Raises ResultsError where a file is damaged.
    """
    # One more: the run itself may have completed nothing.
    known = {"digest": bundle_digest, "run": run_id, "nights": MOST_NIGHTS + 1}
    classes: dict[str, dict[str, int]] = defaultdict(dict)
    for row in results.query(_CHOSEN + _CLASSES, known).to_pylist():
        classes[row["run_id"]][row["class"]] = row["cells"]
    rows = results.query(_CHOSEN + _FIGURES, known).to_pylist()
    nights = {row["run_id"]: _night(row, classes[row["run_id"]]) for row in rows}
    tonight = nights.pop(run_id, None) or Night(
        run_id=run_id,
        slides=0,
        cells=0,
        abnormal=None,
        confidence=None,
        brightness=None,
        focus=None,
    )
    return tonight, list(nights.values())


def _night(row: Mapping[str, object], classes: Mapping[str, int]) -> Night:
    return Night(**row, classes=classes)  # type: ignore[arg-type]  # as the query names them
