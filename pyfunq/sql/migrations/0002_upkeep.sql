-- Upkeep without a single point: who ran it last, and which worker processes of a host are really there.

CREATE TABLE upkeep_run (
    name       text PRIMARY KEY,
    started_at timestamptz NOT NULL
);

-- A text that no other process with this pid has; null where a worker of an older version wrote the row.
ALTER TABLE worker ADD COLUMN process_start text;
CREATE INDEX worker_alive ON worker (hostname) WHERE stopped_at IS NULL;

CREATE INDEX job_dead ON job (id) WHERE status = 'dead';
