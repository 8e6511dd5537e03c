-- The ledger: jobs with their inputs and results, batches, model versions, resolutions, worker processes.

CREATE TABLE model_version (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL,
    version       text NOT NULL,
    created_ms    bigint NOT NULL,      -- a registered model that was deleted and made again is another model
    source        text NOT NULL,
    run_id        text,
    experiment_id text,
    signature     text,                 -- MLflow's JSON of the signature's inputs; null until a worker loaded the version
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, version, created_ms, source)
);

CREATE TABLE resolution (
    model_uri   text PRIMARY KEY,
    version_id  integer NOT NULL REFERENCES model_version (id),
    confidence  boolean NOT NULL DEFAULT false,
    resolved_at timestamptz NOT NULL DEFAULT now(),   -- when it came to point at this version
    checked_at  timestamptz NOT NULL DEFAULT now()    -- when the registry last confirmed it
);

CREATE TABLE worker (
    id         uuid PRIMARY KEY,
    hostname   text NOT NULL,
    pid        integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz
);

CREATE TABLE batch (
    id            uuid PRIMARY KEY,
    model_uri     text NOT NULL,
    source        text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    submitted_at  timestamptz,
    error_code    text,
    error_message text
);

CREATE TABLE job (
    id            uuid PRIMARY KEY,
    page_id       uuid NOT NULL,
    batch_id      uuid,
    version_id    integer,
    worker_id     uuid,
    created_at    timestamptz NOT NULL DEFAULT now(),
    not_before    timestamptz,
    expires_at    timestamptz,
    started_at    timestamptz,
    finished_at   timestamptz,
    rows          integer NOT NULL CHECK (rows > 0),
    batch_index   integer,
    attempt       smallint NOT NULL DEFAULT 0,
    max_attempts  smallint NOT NULL,
    status        text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired', 'dead')),
    lane          text NOT NULL,
    model_uri     text NOT NULL,
    input_format  text NOT NULL,
    input         bytea NOT NULL,
    params        bytea,
    result_format text,
    result        bytea,
    confidence    real[],
    error_code    text,
    error_message text
);

-- Inputs and results arrive compressed where that pays.
ALTER TABLE job ALTER COLUMN input SET STORAGE EXTERNAL, ALTER COLUMN result SET STORAGE EXTERNAL;
ALTER TABLE job SET (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 500
);

CREATE INDEX job_queued_page ON job (page_id) WHERE status = 'queued';
-- Not for jobs that were taken before, which come without company; so a plan for a page cannot mistake it for the above.
CREATE INDEX job_queued_model ON job (model_uri, lane, id) WHERE status = 'queued' AND attempt = 0;
CREATE INDEX job_running ON job (id) WHERE status = 'running';
CREATE INDEX job_queued_deadline ON job (expires_at) WHERE status = 'queued' AND expires_at IS NOT NULL;
CREATE INDEX job_batch ON job (batch_id, batch_index) WHERE batch_id IS NOT NULL;

-- What analysts ask of a prediction log: one row a succeeded job. Inputs and predictions that are kept as Arrow (jobs of
-- a batch), or that hold the character U+0000 (which jsonb cannot), are null here and are read with the client.
CREATE VIEW model_predictions AS
SELECT j.id                                                                        AS job_id,
       v.name                                                                      AS model_name,
       v.version                                                                   AS model_version,
       j.model_uri,
       v.run_id,
       v.experiment_id,
       CASE WHEN j.input_format <> 'arrow' AND position('\x5c7530303030'::bytea IN j.input) = 0
            THEN convert_from(j.input, 'UTF8')::jsonb END                          AS inputs,
       CASE WHEN j.result_format = 'json' AND position('\x5c7530303030'::bytea IN j.result) = 0
            THEN convert_from(j.result, 'UTF8')::jsonb END                         AS prediction,
       CASE WHEN cardinality(j.confidence) = 1 THEN j.confidence[1] END            AS confidence_score,
       j.confidence                                                                AS confidence_scores,
       CASE WHEN position('\x5c7530303030'::bytea IN j.params) = 0
            THEN convert_from(j.params, 'UTF8')::jsonb END                         AS params,
       j.rows,
       j.batch_id,
       j.batch_index,
       j.created_at,
       j.started_at,
       j.finished_at,
       (extract(epoch FROM j.finished_at - j.started_at) * 1000)::double precision AS run_ms,
       (extract(epoch FROM j.finished_at - j.created_at) * 1000)::double precision AS total_ms,
       j.attempt,
       w.hostname || ':' || w.pid                                                  AS worker
FROM job j
LEFT JOIN model_version v ON v.id = j.version_id
LEFT JOIN worker w ON w.id = j.worker_id
WHERE j.status = 'succeeded';
