-- Limits and retries of a job; what its worker processes died of is counted apart from how often it was claimed.

ALTER TABLE job
    ADD COLUMN timeout_seconds double precision,                        -- null: the model's, else the worker's
    ADD COLUMN retries         smallint NOT NULL DEFAULT 0, -- how often the caller wants a failed job tried again
    ADD COLUMN failures        smallint NOT NULL DEFAULT 0, -- how often it failed and was tried again
    ADD COLUMN crashes         smallint NOT NULL DEFAULT 0, -- how often its worker process died; max_attempts bounds it
    ADD COLUMN delayed_since   timestamptz,                 -- when it first had to wait for something that was away
    ADD COLUMN terminate       boolean NOT NULL DEFAULT false;
UPDATE job SET crashes = attempt WHERE status = 'queued' AND attempt > 0;

-- From here on `attempt` only grows: it tells the claims of a job apart.
DROP INDEX job_queued_model;
CREATE INDEX job_queued_model ON job (model_uri, lane, id) WHERE status = 'queued' AND crashes = 0;
CREATE INDEX job_queued_later ON job (not_before) WHERE status = 'queued' AND not_before IS NOT NULL;

ALTER TABLE resolution ADD COLUMN timeout_seconds double precision; -- null: the model's tag does not say
