-- Only who asks by page may read this index: page_id is never null, but a statement without a condition on it does not say
-- so. A plan that was made when the queue was empty would take the whole index for the shortest way to anything queued.
DROP INDEX job_queued_page;
CREATE INDEX job_queued_page ON job (page_id) WHERE status = 'queued' AND page_id IS NOT NULL;
