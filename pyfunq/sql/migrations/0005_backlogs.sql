-- Backlogs that can be resumed, and inputs that name a file's rows instead of holding them.

ALTER TABLE batch
    ADD COLUMN cut     text,                               -- JSON: how it is cut and from which state of which file; null: cannot be resumed
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now(); -- when its producer was last heard

-- Two producers of the same chunk, one of them thought to be dead, make one job.
DROP INDEX job_batch;
CREATE UNIQUE INDEX job_batch ON job (batch_id, batch_index) WHERE batch_id IS NOT NULL;

-- As before, but for inputs by reference, which are not the values that the model got.
CREATE OR REPLACE VIEW model_predictions AS
SELECT j.id                                                                        AS job_id,
       v.name                                                                      AS model_name,
       v.version                                                                   AS model_version,
       j.model_uri,
       v.run_id,
       v.experiment_id,
       CASE WHEN j.input_format NOT IN ('arrow', 'reference') AND position('\x5c7530303030'::bytea IN j.input) = 0
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
