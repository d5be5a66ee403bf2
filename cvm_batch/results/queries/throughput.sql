-- Runs: how much they classified, how fast, and on what
SELECT
    run_id,
    state,
    started_at,
    slides_complete,
    slides_incomplete + slides_failed AS not_complete,
    cells_classified AS cells,
    tiles_per_second,
    seconds_starting,
    seconds_classifying,
    replicas,
    replicas_lost,
    precision,
    backend
FROM runs
ORDER BY run_id DESC;
