-- What waits after its process died is not in job_queued_model: without an index of its own, rescue would look for it, and
-- for pages without a message, among all that waits.
CREATE INDEX job_queued_crashed ON job (page_id) WHERE status = 'queued' AND crashes > 0;
