-- Views over `slides_all`, which `reading.py` registers. Nothing here reads a file itself.

CREATE VIEW slides AS
FROM slides_all
QUALIFY row_number() OVER (PARTITION BY slide_id ORDER BY finished_at DESC, run_id DESC) = 1;

CREATE VIEW slide_classes AS
SELECT
    slide_id,
    run_id,
    status,
    entry.key AS class,
    CASE WHEN status = 'complete' THEN entry.value END AS count,
    count / cells_classified AS fraction,
    CASE WHEN status = 'incomplete' THEN entry.value END AS count_at_least
FROM (
    SELECT
        slide_id, run_id, status, cells_classified,
        unnest(map_entries(coalesce(class_counts, counts_at_least))) AS entry
    FROM slides
);

-- From the most to the least severe.
CREATE MACRO highest_grade(classes) AS list_filter(
    [
        'SCC', 'HSIL', 'ASC-H', 'LSIL', 'Dyskeratotic', 'Koilocytotic', 'ASC-US',
        'NILM', 'Metaplastic', 'Parabasal', 'Superficial-Intermediate'
    ],
    lambda class: classes[class] > 0
)[1];

-- One row per slide of a run, or per slide, each in exactly one list. Only complete slides with
-- enough cells are ranked: no other one ever looks like a negative.
CREATE MACRO worklist(
    measure := 'slide_score',
    run := NULL,
    negative_below := 0.5,
    quality_control_share := 0.1,
    seed := 0
) AS TABLE
WITH chosen AS (
    FROM slides_all  -- read once: with the view `slides` beside it, it would be read twice
    WHERE run IS NULL OR run_id = run
    QUALIFY row_number() OVER (PARTITION BY slide_id ORDER BY finished_at DESC, run_id DESC) = 1
),
measured AS (
    SELECT
        *,
        coalesce(group_counts, group_counts_at_least) AS counts,
        CASE
            WHEN measure = 'slide_score' THEN slide_score
            WHEN measure LIKE 'fraction:%' THEN group_counts[measure[10:]] / cells_classified
            WHEN measure LIKE 'count:%' THEN group_counts[measure[7:]]
            ELSE error('rank by slide_score, fraction:GROUP or count:GROUP')
        END AS value
    FROM chosen
),
listed AS (
    SELECT
        *,
        CASE
            WHEN status = 'failed' THEN 'failed'
            WHEN status = 'incomplete' AND counts[primary_group] > 0 THEN 'urgent_incomplete'
            WHEN status = 'incomplete' THEN 'incomplete'
            WHEN adequacy = 'scant' THEN 'scant'
            WHEN value IS NULL THEN 'unranked'
            ELSE 'ranked'
        END AS list,
        coalesce(list = 'ranked' AND slide_score < negative_below, false) AS negative
    FROM measured
),
placed AS (
    SELECT
        *,
        row_number() OVER suspicious AS place,
        count(*) OVER (PARTITION BY list) AS places,
        ntile(5) OVER suspicious AS fifth,
        -- By a digest: the same seed draws the same slides again.
        row_number() OVER (
            PARTITION BY negative ORDER BY md5(seed || ':' || slide_id), slide_id
        ) AS drawn,
        count(*) OVER (PARTITION BY negative) AS drawable
    FROM listed
    WINDOW suspicious AS (
        PARTITION BY list
        ORDER BY
            value DESC NULLS LAST,
            slide_score DESC NULLS LAST,
            counts[primary_group] DESC NULLS LAST,
            slide_id
    )
)
SELECT
    list,
    CASE WHEN list = 'ranked' THEN place END AS rank,
    CASE WHEN list = 'ranked' THEN places END AS ranks,
    CASE WHEN list = 'ranked' THEN fifth END AS quintile,
    slide_id,
    run_id,
    status,
    reason,
    detail,
    adequacy,
    preparation,
    value,
    slide_score,
    highest_grade(top_classes) AS top_grade,
    cells_expected,
    cells_classified,
    cells_unreadable,
    counts,
    negative,
    negative AND drawn <= ceil(quality_control_share * drawable) AS quality_control,
    cells_files,
    tops_files
FROM placed
ORDER BY
    list_position(
        ['urgent_incomplete', 'ranked', 'unranked', 'scant', 'incomplete', 'failed'], list
    ),
    place;
