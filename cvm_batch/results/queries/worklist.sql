-- Slides in the order in which to look at them, by slide score; those to look at apart at its ends
SELECT
    list,
    rank,
    ranks AS of,
    quintile,
    slide_id,
    slide_score,
    top_grade,
    cells_classified AS cells,
    cells_unreadable AS unreadable,
    counts['asc_us_plus'] AS asc_us_plus,
    counts['lsil_plus'] AS lsil_plus,
    counts['hsil_plus'] AS hsil_plus,
    quality_control,
    reason
FROM worklist();
