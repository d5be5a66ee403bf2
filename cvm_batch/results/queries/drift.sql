-- Runs: what they saw, and by how many standard deviations it differs from the 30 before them
WITH nights AS (
    SELECT
        run_id,
        bundle_digest,
        count(*) AS slides,
        sum(cells_classified)::BIGINT AS cells,
        sum(abnormal_count) / sum(cells_classified) AS abnormal,
        sum(confidence_mean * cells_classified) / sum(cells_classified) AS confidence,
        sum(brightness_mean * cells_classified) / sum(cells_classified) AS brightness,
        sum(focus_mean * cells_classified) / sum(cells_classified) AS focus
    FROM slides_all
    WHERE status = 'complete'
    GROUP BY run_id, bundle_digest
)
SELECT
    run_id,
    slides,
    cells,
    abnormal,
    (abnormal - avg(abnormal) OVER earlier) / nullif(stddev(abnormal) OVER earlier, 0)
        AS abnormal_off,
    confidence,
    (confidence - avg(confidence) OVER earlier) / nullif(stddev(confidence) OVER earlier, 0)
        AS confidence_off,
    brightness,
    (brightness - avg(brightness) OVER earlier) / nullif(stddev(brightness) OVER earlier, 0)
        AS brightness_off,
    focus,
    (focus - avg(focus) OVER earlier) / nullif(stddev(focus) OVER earlier, 0) AS focus_off
FROM nights
-- Another model sees otherwise. A run's identifier begins with its time.
WINDOW earlier AS (
    PARTITION BY bundle_digest ORDER BY run_id ROWS BETWEEN 30 PRECEDING AND 1 PRECEDING
)
ORDER BY run_id DESC;
