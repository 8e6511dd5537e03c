-- Inputs apart from their jobs: a claim and a result write a job's row again, and what they do not change goes with it.

LOCK TABLE job;

-- No foreign key, which would cost each job a trigger; and never updated, so that its pages are filled and written once.
CREATE TABLE job_input (
    id     uuid PRIMARY KEY,
    input  bytea NOT NULL,
    params bytea
) WITH (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000);
-- Vacuum soon marks new rows as committed. Whoever reads a row first would have to, long after a checkpoint perhaps: then
-- a server with data checksums writes the whole page to its log.
ALTER TABLE job_input ALTER COLUMN input SET STORAGE EXTERNAL;
INSERT INTO job_input (id, input, params) SELECT id, input, params FROM job;

-- As before; a query that asks for neither inputs nor params does not read them.
CREATE OR REPLACE VIEW model_predictions AS
SELECT j.id                                                                        AS job_id,
       v.name                                                                      AS model_name,
       v.version                                                                   AS model_version,
       j.model_uri,
       v.run_id,
       v.experiment_id,
       CASE WHEN j.input_format NOT IN ('arrow', 'reference') AND position('\x5c7530303030'::bytea IN i.input) = 0
            THEN convert_from(i.input, 'UTF8')::jsonb END                          AS inputs,
       CASE WHEN j.result_format = 'json' AND position('\x5c7530303030'::bytea IN j.result) = 0
            THEN convert_from(j.result, 'UTF8')::jsonb END                         AS prediction,
       CASE WHEN cardinality(j.confidence) = 1 THEN j.confidence[1] END            AS confidence_score,
       j.confidence                                                                AS confidence_scores,
       CASE WHEN position('\x5c7530303030'::bytea IN i.params) = 0
            THEN convert_from(i.params, 'UTF8')::jsonb END                         AS params,
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
LEFT JOIN job_input i ON i.id = j.id
LEFT JOIN model_version v ON v.id = j.version_id
LEFT JOIN worker w ON w.id = j.worker_id
WHERE j.status = 'succeeded';

-- Of an input a job keeps what a claim's cap counts. Changing the type writes the table anew, without the inputs.
ALTER TABLE job DROP COLUMN params, ALTER COLUMN input TYPE integer USING octet_length(input);
ALTER TABLE job RENAME COLUMN input TO input_bytes;
