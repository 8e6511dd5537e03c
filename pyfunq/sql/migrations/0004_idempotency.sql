-- Which job a caller's idempotency key stands for; the request itself is kept as a digest.

CREATE TABLE idempotency (
    key        text PRIMARY KEY,
    digest     bytea NOT NULL,
    job_id     uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_created ON idempotency (created_at);
CREATE INDEX idempotency_job ON idempotency (job_id);
