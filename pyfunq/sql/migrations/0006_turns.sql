-- A lane has several queues; a job keeps to its own, and takes company along from there.

ALTER TABLE job RENAME COLUMN lane TO queue;
DROP INDEX job_queued_model;
CREATE INDEX job_queued_model ON job (queue, model_uri, id) WHERE status = 'queued' AND crashes = 0;

ALTER TABLE resolution ADD COLUMN max_rows integer; -- of a call; null: the model's tags do not say
