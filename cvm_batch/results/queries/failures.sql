-- Slides that are not complete, why, and whether the next submit tries them again
SELECT
    status, reason, slide_id, cells_unreadable, attempts, submit_tries_again(reason) AS tried_again,
    run_id, detail
FROM slides
WHERE status <> 'complete'
ORDER BY status, reason, slide_id;
