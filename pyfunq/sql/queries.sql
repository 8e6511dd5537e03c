-- name: submit
-- Accepts jobs and their inputs: they are the ledger's from this statement's commit on.
WITH kept AS (
    INSERT INTO job_input (id, input, params) SELECT * FROM unnest($1::uuid[], $15::bytea[], $16::bytea[])
)
INSERT INTO job (id, page_id, batch_id, batch_index, queue, model_uri, rows, max_attempts, retries, timeout_seconds,
                 expires_at, input_format, input_bytes, tenant_id)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::integer[], $5::text[], $6::text[], $7::integer[],
                     $8::smallint[], $9::smallint[], $10::double precision[],
                     $11::timestamptz[], $12::text[], $13::integer[], $14::integer[])

-- name: submit_alike
-- Likewise, for jobs that differ in page, rows and input alone: an array for each column would cost more than all else.
WITH kept AS (
    INSERT INTO job_input (id, input, params)
    SELECT id, input, $13::bytea FROM unnest($1::uuid[], $5::bytea[]) AS i (id, input)
)
INSERT INTO job (id, page_id, rows, input_bytes, queue, model_uri, max_attempts, retries, timeout_seconds, expires_at,
                 input_format, tenant_id)
SELECT n.*, $6::text, $7::text, $8::smallint, $9::smallint, $10::double precision, $11::timestamptz, $12::text,
       $14::integer
FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::integer[]) AS n (id, page_id, rows, input_bytes)

-- name: submit_chunks
-- Likewise, but for chunks of batches: one that is there already, or is being committed by another producer, is left out.
WITH new AS (
    INSERT INTO job (id, page_id, batch_id, batch_index, queue, model_uri, rows, max_attempts, retries, timeout_seconds,
                     expires_at, input_format, input_bytes, tenant_id)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::integer[], $5::text[], $6::text[], $7::integer[],
                         $8::smallint[], $9::smallint[], $10::double precision[],
                         $11::timestamptz[], $12::text[], $13::integer[], $14::integer[])
    ON CONFLICT (batch_id, batch_index) WHERE batch_id IS NOT NULL DO NOTHING
    RETURNING id
)
INSERT INTO job_input (id, input, params)
SELECT i.* FROM unnest($1::uuid[], $15::bytea[], $16::bytea[]) AS i (id, input, params)
WHERE i.id = ANY (ARRAY(SELECT id FROM new))

-- name: note_jobs
-- Keeps what callers want to find with their jobs ($1) again ($2).
INSERT INTO job_note (id, metadata) SELECT * FROM unnest($1::uuid[], $2::text[])

-- name: take_keys
-- Makes idempotency keys ($1, each once) stand for new jobs, unless they stand for others and are younger than $4 seconds.
INSERT INTO idempotency (key, digest, job_id)
SELECT * FROM unnest($1::text[], $2::bytea[], $3::uuid[]) AS wanted (key, digest, job_id) ORDER BY key
ON CONFLICT (key) DO UPDATE SET digest = EXCLUDED.digest, job_id = EXCLUDED.job_id, created_at = now()
WHERE idempotency.created_at <= now() - make_interval(secs => $4)

-- name: read_keys
-- What idempotency keys ($1) younger than $2 seconds stand for; after `take_keys`, whoever took them.
SELECT key, digest, job_id FROM idempotency
WHERE key = ANY ($1::text[]) AND created_at > now() - make_interval(secs => $2)

-- name: drop_old_keys
-- Forgets idempotency keys of jobs and of batches older than $1 seconds.
WITH of_batches AS (
    DELETE FROM batch_key
    WHERE key = ANY (ARRAY(SELECT key FROM batch_key WHERE created_at <= now() - make_interval(secs => $1)
                           ORDER BY created_at LIMIT 10000 FOR UPDATE SKIP LOCKED))
)
DELETE FROM idempotency
WHERE key = ANY (ARRAY(SELECT key FROM idempotency WHERE created_at <= now() - make_interval(secs => $1)
                       ORDER BY created_at LIMIT 10000 FOR UPDATE SKIP LOCKED))

-- name: count_queued
-- Queued jobs of queues ($1), of which no more than $2 are counted. Without those few whose process died: so an index
-- that knows the queues answers alone, and a long one is not read to count a short one.
SELECT count(*) FROM (SELECT FROM job WHERE status = 'queued' AND crashes = 0 AND queue = ANY ($1::text[]) LIMIT $2)
    AS counted

-- name: claim
-- Takes a page's queued jobs ($1) for a worker process ($2) and, where the caps ($3 jobs, $4 rows or fewer that the model
-- takes in a call that is not too long, $5 bytes) leave much room, further queued jobs of the same model and queue, oldest first. A job whose process
-- died comes without company.
WITH model AS MATERIALIZED (
    SELECT version_id, good_version_id, confidence, timeout_seconds, least(max_rows, call_rows) AS max_rows,
           least($4, max_rows, call_rows) AS cap
    FROM (SELECT model_uri FROM job WHERE page_id = $1 AND status = 'queued' LIMIT 1) AS head
    LEFT JOIN resolution USING (model_uri)
), own AS MATERIALIZED (
    SELECT id, model_uri, queue, crashes, rows, input_bytes AS bytes
    FROM job
    WHERE page_id = $1 AND status = 'queued'
      AND (not_before IS NULL OR not_before <= now()) AND (expires_at IS NULL OR expires_at > now())
    ORDER BY created_at, id  -- by id alone the primary key would do, read from its beginning
    LIMIT least($3, (SELECT cap FROM model))  -- no job has less than a row
    FOR UPDATE SKIP LOCKED
), along AS MATERIALIZED (
    SELECT id, rows, input_bytes AS bytes
    FROM job
    -- Scalars and not a join: so the index gives the order, and a backlog is not sorted for each micro-batch.
    WHERE model_uri = (SELECT model_uri FROM own LIMIT 1) AND queue = (SELECT queue FROM own LIMIT 1)
      AND status = 'queued' AND crashes = 0 AND page_id IS DISTINCT FROM $1
      AND not_before IS NULL AND (expires_at IS NULL OR expires_at > now())
      AND rows <= (SELECT cap FROM model) - (SELECT sum(rows) FROM own)
      AND NOT EXISTS (SELECT FROM own WHERE crashes > 0)
    ORDER BY id
    LIMIT CASE WHEN (SELECT count(*) FROM own) * 2 <= $3
               THEN least($3, (SELECT cap FROM model)) - (SELECT count(*) FROM own) ELSE 0 END
    FOR UPDATE SKIP LOCKED
), measured AS (
    SELECT id, sum(rows) OVER upto - rows AS rows_before, sum(bytes) OVER upto - bytes AS bytes_before
    FROM (SELECT id, rows, bytes, 0 AS rank FROM own UNION ALL SELECT id, rows, bytes, 1 FROM along) AS candidate
    WINDOW upto AS (ORDER BY rank, id)
), taken AS (
    UPDATE job SET status = 'running', attempt = attempt + 1, worker_id = $2, started_at = now()
    FROM model
    WHERE id = ANY (ARRAY(SELECT id FROM measured WHERE rows_before < (SELECT cap FROM model) AND bytes_before < $5))
    RETURNING id, attempt, model_uri, queue, rows, input_format, model.version_id,
              coalesce(model.confidence, false) AS confidence, crashes, delayed_since IS NOT NULL AS delayed, retries,
              failures, coalesce(job.timeout_seconds, model.timeout_seconds) AS timeout_seconds, model.max_rows,
              model.good_version_id
)
SELECT id, attempt, model_uri, queue, rows, input_format, input, params, version_id, confidence, crashes, delayed, retries,
       failures, timeout_seconds, max_rows, good_version_id
-- OFFSET: so it is looked up job by job, whatever the planner knew of the tables when it made the plan.
FROM taken CROSS JOIN LATERAL (SELECT input, params FROM job_input WHERE job_input.id = taken.id OFFSET 0) AS kept

-- name: is_there
-- Whether a job is committed.
SELECT FROM job WHERE id = $1

-- name: get_version
-- A model version by the ledger's id for it.
SELECT id, name, version, created_ms, source, run_id, experiment_id, signature FROM model_version WHERE id = $1

-- name: resolution
-- The version that serves a model URI, if anyone has resolved it yet: a new one serves once a process made it ready.
SELECT r.confidence, r.timeout_seconds, r.max_rows, r.queue, r.updated_ms, r.resolved_at, r.checked_at, r.call_rows,
       v.id, v.name, v.version, v.created_ms, v.source, v.run_id, v.experiment_id, v.signature
FROM resolution r JOIN model_version v ON v.id = coalesce(r.good_version_id, r.version_id)
WHERE r.model_uri = $1

-- name: resolutions
-- Every resolution, for the registry watch and for people.
SELECT r.model_uri, r.confidence, r.timeout_seconds, r.max_rows, r.queue, r.updated_ms, r.resolved_at, r.checked_at,
       r.call_rows,
       v.id, v.name, v.version, v.created_ms, v.source, v.run_id, v.experiment_id, v.signature
FROM resolution r JOIN model_version v ON v.id = r.version_id
ORDER BY r.model_uri

-- name: versions_named
-- The versions of a model that were ever asked for, newest first.
SELECT id, name, version, created_ms, source, run_id, experiment_id, signature FROM model_version
WHERE name = $1 ORDER BY id DESC LIMIT $2

-- name: add_version
-- Makes a version known; a version that is known keeps its id and its signature.
INSERT INTO model_version (name, version, created_ms, source, run_id, experiment_id)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (name, version, created_ms, source) DO UPDATE SET run_id = EXCLUDED.run_id
RETURNING id

-- name: point_resolution
-- Points a model URI at a version, unless somebody asked the registry later ($8: when this was asked); resolved_at moves
-- only when the version does.
WITH remembered AS (
    INSERT INTO own_queue (name) SELECT $6 WHERE $6::text IS NOT NULL ON CONFLICT (name) DO NOTHING
)
INSERT INTO resolution (model_uri, version_id, confidence, timeout_seconds, max_rows, queue, updated_ms, checked_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, coalesce($8, now()))
ON CONFLICT (model_uri) DO UPDATE
SET version_id = EXCLUDED.version_id, confidence = EXCLUDED.confidence, checked_at = EXCLUDED.checked_at,
    timeout_seconds = EXCLUDED.timeout_seconds, max_rows = EXCLUDED.max_rows,
    queue = EXCLUDED.queue, updated_ms = EXCLUDED.updated_ms,
    resolved_at = CASE WHEN resolution.version_id = EXCLUDED.version_id THEN resolution.resolved_at ELSE now() END
WHERE resolution.checked_at <= EXCLUDED.checked_at

-- name: set_call_rows
-- How many rows a call of a model may have so that it does not take long.
UPDATE resolution SET call_rows = $2 WHERE model_uri = $1 AND call_rows IS DISTINCT FROM $2

-- name: confirm_resolutions
-- Notes that the registry still says the same of these model URIs, and when it last changed their models.
-- Not where somebody asked it later ($3: when this was asked).
UPDATE resolution SET checked_at = coalesce($3, now()), updated_ms = same.updated_ms
FROM unnest($1::text[], $2::bigint[]) AS same (model_uri, updated_ms)
WHERE resolution.model_uri = same.model_uri AND resolution.checked_at <= coalesce($3, now())

-- name: own_queues
-- Every queue that was ever a model's own, and whether it still is.
SELECT name, name IN (SELECT queue FROM resolution WHERE queue IS NOT NULL) AS in_use FROM own_queue

-- name: drop_resolution
-- Forgets a model URI that the registry no longer has: the next job asks the registry. $2: when it was asked.
DELETE FROM resolution WHERE model_uri = $1 AND checked_at <= coalesce($2, now())

-- name: made_ready
-- A process has a version ($2) ready for a model URI ($1). Its signature ($3) is what inputs are checked against from
-- now on.
WITH signed AS (UPDATE model_version SET signature = $3::text WHERE id = $2 AND signature IS DISTINCT FROM $3 AND $3 IS NOT NULL)
UPDATE resolution SET good_version_id = $2
WHERE model_uri = $1 AND version_id = $2 AND good_version_id IS DISTINCT FROM $2

-- name: asked_models
-- What model URIs ($1) stand for, and those that operators asked for since $2.
SELECT model_uri, r.version_id, r.good_version_id, w.asked_at
FROM (SELECT unnest($1::text[]) AS model_uri UNION SELECT model_uri FROM warm_request WHERE asked_at > $2) AS asked
LEFT JOIN resolution r USING (model_uri)
LEFT JOIN (SELECT model_uri, asked_at FROM warm_request WHERE asked_at > $2) AS w USING (model_uri)

-- name: queued_inputs
-- Some inputs that are queued for a model URI ($1), from the queues ($2) of all lanes.
SELECT input_format, input FROM job JOIN job_input ON job_input.id = ANY (ARRAY[job.id])
WHERE status = 'queued' AND crashes = 0 AND queue = ANY ($2::text[]) AND model_uri = $1 AND input_bytes < 1000000
LIMIT $3

-- name: ended_in_load
-- Seconds for which a version ($2) is not to be tried on a host ($1), as a process that tried it ended.
SELECT extract(epoch FROM max(f.next_try_at) - now())::double precision AS seconds
FROM load_failure f JOIN worker w ON w.id = f.worker_id
WHERE f.version_id = $2 AND f.reason IS NULL AND w.hostname = $1 AND w.stopped_at IS NOT NULL AND f.next_try_at > now()

-- name: serve
-- Notes what a worker process ($1) serves a model URI with; `since` moves only when the version does.
INSERT INTO serving (worker_id, model_uri, version_id, size_bytes, load_seconds) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (worker_id, model_uri) DO UPDATE
SET version_id = EXCLUDED.version_id, size_bytes = EXCLUDED.size_bytes, load_seconds = EXCLUDED.load_seconds,
    since = CASE WHEN serving.version_id = EXCLUDED.version_id THEN serving.since ELSE now() END

-- name: serve_no_more
-- What a worker process ($1) has dropped ($2).
DELETE FROM serving WHERE worker_id = $1 AND model_uri = ANY ($2::text[])

-- name: serving
-- What worker processes serve whose heartbeat is younger than $1 seconds.
SELECT w.hostname, w.pid, s.model_uri, v.name, v.version, s.since, s.size_bytes, s.load_seconds
FROM serving s JOIN worker w ON w.id = s.worker_id JOIN model_version v ON v.id = s.version_id
WHERE w.stopped_at IS NULL AND w.seen_at > now() - make_interval(secs => $1)
ORDER BY s.model_uri, w.hostname, w.pid

-- name: begin_load
-- Notes that a worker process ($1) tries to load a version ($3) for a model URI ($2), and when it would try again.
INSERT INTO load_failure (worker_id, model_uri, version_id, next_try_at)
VALUES ($1, $2, $3, now() + make_interval(secs => $4))
ON CONFLICT (worker_id, version_id) DO UPDATE
SET tries = load_failure.tries + 1, failed_at = now(), next_try_at = EXCLUDED.next_try_at, model_uri = EXCLUDED.model_uri

-- name: fail_load
UPDATE load_failure SET reason = $3, failed_at = now() WHERE worker_id = $1 AND version_id = $2

-- name: forget_failure
DELETE FROM load_failure WHERE worker_id = $1 AND version_id = $2

-- name: load_failures
-- What worker processes could not load within the last $1 seconds.
SELECT w.hostname, w.pid, f.model_uri, v.name, v.version, f.reason, f.tries, f.failed_at, f.next_try_at
FROM load_failure f JOIN worker w ON w.id = f.worker_id JOIN model_version v ON v.id = f.version_id
WHERE f.failed_at > now() - make_interval(secs => $1)
ORDER BY f.failed_at DESC, f.model_uri, w.hostname, w.pid

-- name: ask_to_warm
INSERT INTO warm_request (model_uri) VALUES ($1) ON CONFLICT (model_uri) DO UPDATE SET asked_at = now()

-- name: prune_models
-- Forgets what ended processes served, failures of a week ago, and what was asked for yesterday.
WITH failures AS (DELETE FROM load_failure WHERE failed_at < now() - interval '7 days'),
     requests AS (DELETE FROM warm_request WHERE asked_at < now() - interval '1 day')
DELETE FROM serving
WHERE NOT EXISTS (SELECT FROM worker w WHERE w.id = serving.worker_id AND w.stopped_at IS NULL
                                         AND w.seen_at > now() - interval '1 day')

-- name: finish
-- Records final statuses and results, each guarded by id, status ($2), attempt and worker; returns what was recorded.
-- = ANY (ARRAY[x]), here and below: looks jobs up one by one, which an equality leaves to the planner. In a plan from when
-- the table was small it would read the whole index to compare.
-- || '': so that no plan takes the partial index on running jobs, whose size the planner does not know. It would read all
-- of it again for each job, or compare each job with each.
UPDATE job
SET status = d.status, finished_at = clock_timestamp(), version_id = d.version_id,
    result_format = d.result_format, result = d.result, confidence = d.confidence::real[],
    error_code = d.error_code, error_message = d.error_message
FROM unnest($3::uuid[], $4::smallint[], $5::text[], $6::integer[], $7::text[], $8::bytea[], $9::text[], $10::text[],
            $11::text[])
     AS d (id, attempt, status, version_id, result_format, result, confidence, error_code, error_message)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status || '' = $2 AND job.attempt = d.attempt AND job.worker_id = $1
RETURNING job.id

-- name: finish_alike
-- `finish` for outcomes that differ in their results alone.
UPDATE job
SET status = $3, finished_at = clock_timestamp(), version_id = $4, result_format = $5, result = d.result
FROM unnest($6::uuid[], $7::smallint[], $8::bytea[]) AS d (id, attempt, result)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status || '' = $2 AND job.attempt = d.attempt AND job.worker_id = $1
RETURNING job.id

-- name: delay
-- Puts claimed jobs back to wait for something that is away, each time for as long as they have waited already (1 s to
-- $5 s, times $6 to spread them), or ends them when they have waited for $7 seconds; guarded like `finish`.
UPDATE job
SET status = CASE WHEN delayed_since <= now() - make_interval(secs => $7) THEN 'failed' ELSE 'queued' END,
    finished_at = CASE WHEN delayed_since <= now() - make_interval(secs => $7) THEN now() END,
    error_code = CASE WHEN delayed_since <= now() - make_interval(secs => $7) THEN $8::text END,
    error_message = CASE WHEN delayed_since <= now() - make_interval(secs => $7) THEN $9::text END,
    delayed_since = coalesce(delayed_since, now()), worker_id = NULL, started_at = NULL,
    not_before = now() + $6::double precision * make_interval(
        secs => least($5, greatest(1, extract(epoch FROM now() - coalesce(delayed_since, now()))::double precision)))
FROM unnest($3::uuid[], $4::smallint[]) AS d (id, attempt)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status || '' = $2 AND job.attempt = d.attempt AND job.worker_id = $1
RETURNING job.id, job.status

-- name: retry
-- Puts failed jobs back that are to be tried again, after 1, 2, 4, ... $5 seconds, times $6; guarded like `finish`.
UPDATE job
SET status = 'queued', failures = failures + 1, worker_id = NULL, started_at = NULL,
    not_before = now() + $6::double precision * make_interval(secs => least($5, power(2, job.failures)))
FROM unnest($3::uuid[], $4::smallint[]) AS d (id, attempt)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status || '' = $2 AND job.attempt = d.attempt AND job.worker_id = $1
RETURNING job.id

-- name: give_back
-- Puts claimed jobs back at once, on a new page ($5) that the caller must publish, perhaps in another queue ($6);
-- guarded like `finish`.
UPDATE job
SET status = 'queued', worker_id = NULL, started_at = NULL, page_id = $5, queue = coalesce($6, queue)
FROM unnest($3::uuid[], $4::smallint[]) AS d (id, attempt)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status || '' = $2 AND job.attempt = d.attempt AND job.worker_id = $1
RETURNING job.id

-- name: crash
-- Notes that jobs cost their process its life, or would have ($6 says how): each back on a new page ($5) of its own
-- that the caller must publish, or `dead`; guarded like `finish`.
UPDATE job
SET status = CASE WHEN crashes + 1 >= max_attempts THEN 'dead' ELSE 'queued' END, crashes = crashes + 1,
    finished_at = CASE WHEN crashes + 1 >= max_attempts THEN now() END,
    error_code = CASE WHEN crashes + 1 >= max_attempts THEN 'job_dead' END,
    error_message = CASE WHEN crashes + 1 >= max_attempts THEN $6::text || ', ' || crashes + 1 || ' times' END,
    worker_id = CASE WHEN crashes + 1 >= max_attempts THEN job.worker_id END, page_id = d.page_id
FROM unnest($3::uuid[], $4::smallint[], $5::uuid[]) AS d (id, attempt, page_id)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status || '' = $2 AND job.attempt = d.attempt AND job.worker_id = $1
RETURNING job.id, job.page_id, job.status, job.crashes

-- name: withdrawn
-- Which of these jobs were cancelled by somebody who wants their processes stopped.
SELECT id FROM job WHERE id = ANY ($1::uuid[]) AND status = 'cancelled' AND terminate

-- name: cancel
-- Withdraws jobs that are not final; a result that arrives later finds no running job. $2: stop their calls as well.
-- Those that were cancelled before without it are stopped by it too.
UPDATE job SET status = 'cancelled', finished_at = CASE WHEN status = 'cancelled' THEN finished_at ELSE now() END,
               terminate = $2 AND status IN ('running', 'cancelled')
WHERE id = ANY ($1::uuid[])
  AND (status IN ('queued', 'running') OR ($2 AND status = 'cancelled' AND NOT terminate AND worker_id IS NOT NULL))
RETURNING id

-- name: requeue_dead
-- Puts dead jobs ($1) back as if they were new, each on a page of its own that the caller must publish.
UPDATE job SET status = 'queued', crashes = 0, failures = 0, delayed_since = NULL, not_before = NULL,
               page_id = d.page_id, finished_at = NULL, started_at = NULL, worker_id = NULL,
               error_code = NULL, error_message = NULL
FROM unnest($1::uuid[], $2::uuid[]) AS d (id, page_id)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status = 'dead'
RETURNING job.page_id AS id, job.model_uri, job.queue, 1 AS jobs

-- name: try_again
-- Puts jobs ($1) back as if they were new that ended without success, each on a page ($2) of its own that the caller must
-- publish; a deadline that they had is over.
UPDATE job SET status = 'queued', crashes = 0, failures = 0, delayed_since = NULL, not_before = NULL,
               page_id = d.page_id, finished_at = NULL, started_at = NULL, worker_id = NULL, expires_at = NULL,
               terminate = false, error_code = NULL, error_message = NULL
FROM unnest($1::uuid[], $2::uuid[]) AS d (id, page_id)
WHERE job.id = ANY (ARRAY[d.id]) AND job.status IN ('failed', 'cancelled', 'expired', 'dead')
RETURNING job.page_id AS id, job.model_uri, job.queue, 1 AS jobs

-- name: purge_dead
-- Deletes dead jobs that ended more than $1 seconds ago, with their inputs, and frees their idempotency keys.
-- Keys are locked in the order in which submits lock them.
WITH doomed AS MATERIALIZED (
    SELECT id FROM job WHERE status = 'dead' AND finished_at <= now() - make_interval(secs => $1)
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
), locked AS MATERIALIZED (
    SELECT key FROM idempotency WHERE job_id = ANY (ARRAY(SELECT id FROM doomed)) ORDER BY key FOR UPDATE
), freed AS (
    DELETE FROM idempotency WHERE key = ANY (ARRAY(SELECT key FROM locked))
), emptied AS (
    DELETE FROM job_input WHERE id = ANY (ARRAY(SELECT id FROM doomed))
), unnoted AS (
    DELETE FROM job_note WHERE id = ANY (ARRAY(SELECT id FROM doomed))
), untold AS (
    DELETE FROM webhook WHERE job_id = ANY (ARRAY(SELECT id FROM doomed))
)
DELETE FROM job WHERE id = ANY (ARRAY(SELECT id FROM doomed)) RETURNING id

-- name: cancel_batch
-- Withdraws a batch's jobs that are not final.
UPDATE job SET status = 'cancelled', finished_at = now()
WHERE batch_id = $1 AND status IN ('queued', 'running')
RETURNING id

-- name: get_jobs
-- Jobs by id, without inputs and results.
SELECT j.id, j.status, j.model_uri, j.queue, j.rows, j.attempt, j.crashes, j.max_attempts, j.failures, j.retries,
       j.timeout_seconds, j.created_at, j.started_at,
       j.finished_at, j.expires_at, j.batch_id, j.error_code, j.error_message,
       v.name AS model_name, v.version AS model_version, v.run_id, v.experiment_id,
       w.hostname || ':' || w.pid AS worker, t.name AS tenant, n.metadata
FROM job j
LEFT JOIN model_version v ON v.id = j.version_id
LEFT JOIN worker w ON w.id = j.worker_id
LEFT JOIN tenant t ON t.id = j.tenant_id
LEFT JOIN job_note n ON n.id = ANY (ARRAY[j.id])
WHERE j.id = ANY ($1::uuid[])

-- name: list_jobs
-- Jobs, newest first, from a cursor ($4: the last id of the page before) on.
SELECT j.id, j.status, j.model_uri, j.queue, j.rows, j.attempt, j.crashes, j.max_attempts, j.failures, j.retries,
       j.timeout_seconds, j.created_at, j.started_at,
       j.finished_at, j.expires_at, j.batch_id, j.error_code, j.error_message,
       v.name AS model_name, v.version AS model_version, v.run_id, v.experiment_id,
       w.hostname || ':' || w.pid AS worker, t.name AS tenant, n.metadata
FROM job j
LEFT JOIN model_version v ON v.id = j.version_id
LEFT JOIN worker w ON w.id = j.worker_id
LEFT JOIN tenant t ON t.id = j.tenant_id
LEFT JOIN job_note n ON n.id = ANY (ARRAY[j.id])
WHERE ($1::text IS NULL OR j.status = $1) AND ($2::text IS NULL OR j.model_uri = $2)
  AND ($3::uuid IS NULL OR j.batch_id = $3) AND ($4::uuid IS NULL OR j.id < $4)
  AND ($6::integer IS NULL OR j.tenant_id = $6)
ORDER BY j.id DESC
LIMIT $5

-- name: get_results
-- How jobs ended, with their results.
SELECT id, status, result_format, result, error_code, error_message FROM job WHERE id = ANY ($1::uuid[])

-- name: get_ended
-- Jobs by id, with their results.
SELECT j.id, j.status, j.model_uri, j.queue, j.rows, j.attempt, j.crashes, j.max_attempts, j.failures, j.retries,
       j.timeout_seconds, j.created_at, j.started_at,
       j.finished_at, j.expires_at, j.batch_id, j.error_code, j.error_message,
       v.name AS model_name, v.version AS model_version, v.run_id, v.experiment_id,
       w.hostname || ':' || w.pid AS worker, t.name AS tenant, n.metadata,
       j.result_format, j.result
FROM job j
LEFT JOIN model_version v ON v.id = j.version_id
LEFT JOIN worker w ON w.id = j.worker_id
LEFT JOIN tenant t ON t.id = j.tenant_id
LEFT JOIN job_note n ON n.id = ANY (ARRAY[j.id])
WHERE j.id = ANY ($1::uuid[])

-- name: get_input
-- A job's input as it was stored.
SELECT input_format, input, params FROM job JOIN job_input USING (id) WHERE id = $1

-- name: final_among
-- Which of these jobs are final.
SELECT id FROM job WHERE id = ANY ($1::uuid[]) AND status NOT IN ('queued', 'running')

-- name: open_batch
-- Begins a batch; its jobs follow.
INSERT INTO batch (id, model_uri, source, cut, tenant_id) VALUES ($1, $2, $3, $4, $5)

-- name: close_batch
-- All of a batch's jobs are committed.
UPDATE batch SET submitted_at = coalesce(submitted_at, now()), error_code = NULL, error_message = NULL
WHERE id = $1 AND (error_code IS NULL OR error_code = 'submission_stopped')
RETURNING id

-- name: stop_batch
-- Submitting a batch stopped early. What says that it cannot be resumed stays.
UPDATE batch SET error_code = $2, error_message = $3
WHERE id = $1 AND submitted_at IS NULL AND (error_code IS NULL OR error_code = 'submission_stopped')

-- name: resume_batch
-- Submitting a batch goes on.
UPDATE batch SET error_code = NULL, error_message = NULL, seen_at = now()
WHERE id = $1 AND submitted_at IS NULL AND (error_code IS NULL OR error_code = 'submission_stopped')
RETURNING id

-- name: keep_batch_alive
-- Says that a batch's producer lives, also where another one that submitted it as well has stopped.
UPDATE batch SET seen_at = now(), error_code = NULL, error_message = NULL
WHERE id = $1 AND (error_code IS NULL OR error_code = 'submission_stopped')
RETURNING id

-- name: chunks_there
-- Which chunks of a batch, from index $2 to $3, are committed.
SELECT batch_index, rows FROM job WHERE batch_id = $1 AND batch_index BETWEEN $2 AND $3

-- name: batch_results
-- A batch's results in input order, from an index ($2) on: of $3 jobs, fewer where they have more than $4 bytes. How many
-- these are is known before any is read.
SELECT id, batch_index, status, rows, result_format, result, error_code, error_message
FROM (SELECT *, sum(coalesce(octet_length(result), 0)) OVER (ORDER BY batch_index)
                - coalesce(octet_length(result), 0) AS bytes_before
      FROM (SELECT id, batch_index, status, rows, result_format, result, error_code, error_message
            FROM job WHERE batch_id = $1 AND batch_index >= $2
            ORDER BY batch_index LIMIT $3) AS next) AS measured
WHERE bytes_before < $4
ORDER BY batch_index

-- name: beat_heart
-- Says that a worker process lives.
INSERT INTO worker (id, hostname, pid, process_start) VALUES ($1, $2, $3, $4)
ON CONFLICT (id) DO UPDATE SET seen_at = now(), stopped_at = NULL

-- name: stop_heart
-- Says that a worker process ended by itself.
UPDATE worker SET seen_at = now(), stopped_at = now() WHERE id = $1

-- name: processes_of_host
-- Worker processes of a host ($1) that have not said that they ended.
SELECT id, pid, process_start FROM worker WHERE hostname = $1 AND stopped_at IS NULL AND process_start IS NOT NULL

-- name: begin_upkeep
-- One process at a time: a row comes back only if nobody began this ($1) within the last $2 seconds.
INSERT INTO upkeep_run (name, started_at) VALUES ($1, now())
ON CONFLICT (name) DO UPDATE SET started_at = now()
WHERE upkeep_run.started_at <= now() - make_interval(secs => $2)
RETURNING name

-- name: upkeep_due
-- In how many seconds `begin_upkeep` would find that nobody began this ($1) within the last $2 seconds; to ask costs less.
SELECT greatest(0, extract(epoch FROM started_at - now()) + $2::double precision)::double precision AS seconds
FROM upkeep_run WHERE name = $1

-- name: live_workers
-- Worker processes whose heartbeat is younger than $1 seconds.
SELECT hostname, pid, started_at, seen_at FROM worker
WHERE stopped_at IS NULL AND seen_at > now() - make_interval(secs => $1)
ORDER BY hostname, pid

-- name: rescue_crashed
-- Takes running jobs from worker processes that stopped or have been silent for $1 seconds, during which Postgres could
-- have heard them: back to the queue, each on a page of its own, or to `dead` when it has cost max_attempts processes.
WITH lost AS (
    SELECT job.id FROM job
    WHERE status = 'running'
      AND NOT EXISTS (SELECT FROM worker w WHERE w.id = job.worker_id AND w.stopped_at IS NULL
                      AND greatest(w.seen_at, pg_postmaster_start_time()) > now() - make_interval(secs => $1))
    ORDER BY job.id
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)
UPDATE job
SET status = CASE WHEN crashes + 1 >= max_attempts THEN 'dead' ELSE 'queued' END, crashes = crashes + 1,
    finished_at = CASE WHEN crashes + 1 >= max_attempts THEN now() END,
    error_code = CASE WHEN crashes + 1 >= max_attempts THEN 'job_dead' END,
    error_message = CASE WHEN crashes + 1 >= max_attempts
        THEN 'its worker process ended while predicting, ' || crashes + 1 || ' times' END,
    page_id = id
WHERE id = ANY (ARRAY(SELECT id FROM lost))
RETURNING id, status, crashes

-- name: expire
-- Ends queued jobs whose deadline has passed.
UPDATE job SET status = 'expired', finished_at = now(), error_code = 'job_expired',
               error_message = 'its deadline passed before a worker took it'
WHERE id = ANY (ARRAY(SELECT id FROM job WHERE status = 'queued' AND expires_at <= now()
                      ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED))
RETURNING id

-- name: pages_without_message
-- Pages older than their queue's boundary ($2, by $1) with jobs that are due: of those that go first ($3), or of the
-- others. Each queue and model is read up to the boundary only, for a long queue is younger than its oldest message. A job
-- younger than its page's id is found a little later, when the boundary has passed it.
WITH RECURSIVE oldest AS (
    SELECT * FROM unnest($1::text[], $2::uuid[]) AS o (queue, boundary)
), line AS (
    SELECT queue, boundary, (SELECT model_uri FROM job WHERE status = 'queued' AND crashes = 0 AND queue = oldest.queue
                             ORDER BY model_uri LIMIT 1) AS model_uri
    FROM oldest WHERE NOT $3
    UNION ALL
    SELECT queue, boundary, (SELECT model_uri FROM job WHERE status = 'queued' AND crashes = 0 AND queue = line.queue
                             AND model_uri > line.model_uri ORDER BY model_uri LIMIT 1)
    FROM line WHERE model_uri IS NOT NULL
), lost AS (
    -- IS TRUE, here and below: so that no plan takes the index on pages, in which all queues are.
    -- OFFSET: so that job_queued_model is entered for each queue and model, and left at the boundary.
    SELECT page_id, not_before FROM line CROSS JOIN LATERAL (
        SELECT page_id, not_before FROM job
        WHERE status = 'queued' AND crashes = 0 AND queue = line.queue AND model_uri = line.model_uri
          AND id < boundary AND (page_id < boundary) IS TRUE
        OFFSET 0
    ) AS waiting
    UNION ALL
    SELECT page_id, not_before
    FROM oldest JOIN job USING (queue)
    WHERE status = 'queued' AND crashes > 0 AND (crashes = 1) = $3 AND (page_id < boundary) IS TRUE
)
SELECT page_id FROM lost WHERE not_before IS NULL OR not_before <= now()
GROUP BY page_id
ORDER BY page_id
LIMIT 1000

-- name: due_pages
-- Pages whose jobs had to wait and are due now; their messages were taken when they had to.
SELECT DISTINCT page_id FROM (
    SELECT page_id FROM job WHERE status = 'queued' AND not_before <= now() ORDER BY not_before LIMIT 10000
) AS due

-- name: repage
-- Gives pages ($1) new ids ($2), so that a page's id stays as old as its message; returns what to publish, in the order
-- of the new ids: a queue's oldest message must have its smallest id. Jobs in a queue of a model's own (`model.x`, or
-- `model.x.bulk.3`) go to the same one of what is the model's own now, or everybody's.
WITH moved AS (
    UPDATE job SET page_id = p.new, not_before = NULL,
        queue = CASE WHEN job.queue NOT LIKE 'model.%' THEN job.queue ELSE
            coalesce(nullif(concat_ws('.', (SELECT r.queue FROM resolution r WHERE r.model_uri = job.model_uri),
                                      substring(job.queue FROM '\.(bulk(\.[0-9]+)?)$')), ''), 'interactive') END
    FROM unnest($1::uuid[], $2::uuid[]) AS p (old, new)
    WHERE job.page_id = p.old AND job.status = 'queued' AND (job.not_before IS NULL OR job.not_before <= now())
    RETURNING job.page_id, job.model_uri, job.queue, job.crashes
)
SELECT page_id AS id, min(model_uri) AS model_uri, min(queue) AS queue, count(*) AS jobs, bool_and(crashes = 1) AS first
FROM moved GROUP BY page_id ORDER BY page_id

-- name: queue_depth
-- Queued jobs by model and queue.
SELECT model_uri, queue, count(*) AS jobs, min(created_at) AS oldest FROM job
WHERE status = 'queued' AND page_id >= '00000000-0000-0000-0000-000000000000'  -- so the index on pages serves
GROUP BY model_uri, queue ORDER BY model_uri, queue

-- name: add_key
-- Makes an API key valid, and its tenant ($2) known.
WITH made AS (
    INSERT INTO tenant (name) VALUES ($2) ON CONFLICT (name) DO NOTHING RETURNING id, name
), whose AS (
    SELECT id, name FROM made UNION SELECT id, name FROM tenant WHERE name = $2
), added AS (
    INSERT INTO api_key (id, tenant_id, name, prefix, digest, scopes, models, per_second, max_queued_jobs, expires_at)
    SELECT $1, id, $3, $4, $5, $6, $7, $8, $9, $10 FROM whose
    RETURNING id, tenant_id, name, prefix, scopes, models, per_second, max_queued_jobs, created_at, expires_at,
              revoked_at, used_at
)
SELECT added.*, whose.name AS tenant FROM added CROSS JOIN whose

-- name: use_key
-- The valid key with a digest ($1); once a minute it is noted that it was used.
WITH used AS (
    UPDATE api_key SET used_at = now()
    WHERE digest = $1 AND (used_at IS NULL OR used_at < now() - interval '1 minute')
)
SELECT k.id, k.tenant_id, k.name, k.prefix, k.scopes, k.models, k.per_second, k.max_queued_jobs, k.created_at,
       k.expires_at, k.revoked_at, k.used_at, t.name AS tenant
FROM api_key k JOIN tenant t ON t.id = k.tenant_id
WHERE k.digest = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())

-- name: any_key
-- Whether there ever was a key.
SELECT 1 FROM api_key LIMIT 1

-- name: list_keys
-- Every key, by tenant and age.
SELECT k.id, k.tenant_id, k.name, k.prefix, k.scopes, k.models, k.per_second, k.max_queued_jobs, k.created_at,
       k.expires_at, k.revoked_at, k.used_at, t.name AS tenant
FROM api_key k JOIN tenant t ON t.id = k.tenant_id
ORDER BY t.name, k.created_at

-- name: revoke_keys
-- Ends the valid keys with this prefix, name or id ($1).
WITH ended AS (
    UPDATE api_key SET revoked_at = now()
    WHERE revoked_at IS NULL AND (prefix = $1 OR name = $1 OR id::text = $1)
    RETURNING id, tenant_id, name, prefix, scopes, models, per_second, max_queued_jobs, created_at, expires_at,
              revoked_at, used_at
)
SELECT ended.*, t.name AS tenant FROM ended JOIN tenant t ON t.id = ended.tenant_id

-- name: count_queued_of
-- A tenant's ($1) queued jobs, of which no more than $2 are counted.
SELECT count(*) FROM (SELECT FROM job WHERE tenant_id = $1 AND tenant_id <> 0 AND status = 'queued' LIMIT $2) AS counted

-- name: tenant_of_batch
-- Whose a batch is.
SELECT tenant_id FROM batch WHERE id = $1

-- name: get_batches
-- Batches ($1); for how long their producers were silent while Postgres could have heard them.
SELECT id, model_uri, source, created_at, submitted_at, error_code, error_message, cut,
       extract(epoch FROM now() - greatest(seen_at, pg_postmaster_start_time()))::double precision AS silent_seconds
FROM batch WHERE id = ANY ($1::uuid[])

-- name: count_batches
-- Jobs and rows of batches ($1) by status.
SELECT batch_id, status, count(*) AS jobs, sum(rows) AS rows FROM job WHERE batch_id = ANY ($1::uuid[])
GROUP BY batch_id, status

-- name: list_batches
-- The ids of batches, of a tenant ($1) or all, newest first, from a cursor ($2: the last id of the page before) on.
SELECT id FROM batch
WHERE ($1::integer IS NULL OR tenant_id = $1) AND ($2::uuid IS NULL OR id < $2)
ORDER BY id DESC
LIMIT $3

-- name: batch_jobs
-- How $3 of a batch's jobs are, without results, in input order from an index ($2) on.
SELECT id, batch_index, rows, status, error_code, error_message FROM job
WHERE batch_id = $1 AND batch_index >= $2
ORDER BY batch_index
LIMIT $3

-- name: unfinished_in_batch
-- The first of a batch's jobs that is not final.
SELECT id FROM job WHERE batch_id = $1 AND status IN ('queued', 'running') ORDER BY batch_index LIMIT 1

-- name: keep_custom_ids
-- What the rows of a batch's ($1) chunks ($2) are called ($3).
INSERT INTO batch_custom_ids (batch_id, batch_index, ids)
SELECT $1, * FROM unnest($2::integer[], $3::bytea[])
ON CONFLICT DO NOTHING

-- name: custom_ids
-- What the rows of a batch's chunks, from index $2 to $3, are called.
SELECT batch_index, ids FROM batch_custom_ids WHERE batch_id = $1 AND batch_index BETWEEN $2 AND $3

-- name: take_batch_key
-- Makes an idempotency key ($1) stand for a new batch ($2), unless it stands for one that was submitted less than $3
-- seconds ago, or whose producer was heard within the last $4.
INSERT INTO batch_key AS old (key, batch_id) VALUES ($1, $2)
ON CONFLICT (key) DO UPDATE SET batch_id = EXCLUDED.batch_id, digest = NULL, seen_at = now(), created_at = now()
WHERE CASE WHEN EXISTS (SELECT FROM batch b WHERE b.id = old.batch_id AND b.submitted_at IS NOT NULL)
           THEN old.created_at <= now() - make_interval(secs => $3)
           ELSE old.seen_at <= now() - make_interval(secs => $4) END
RETURNING key

-- name: read_batch_key
-- What an idempotency key stands for, and whether all of that batch is committed.
SELECT k.batch_id, k.digest, b.submitted_at IS NOT NULL AS is_submitted
FROM batch_key k LEFT JOIN batch b ON b.id = k.batch_id
WHERE k.key = $1

-- name: keep_batch_key
-- Says that whoever submits a key's ($1) batch ($2) lives; $3: the request's digest, once it is known.
UPDATE batch_key SET seen_at = now(), digest = coalesce($3, digest) WHERE key = $1 AND batch_id = $2 RETURNING key

-- name: free_batch_key
-- Nothing of a key's ($1) batch ($2) was accepted.
DELETE FROM batch_key WHERE key = $1 AND batch_id = $2

-- name: add_webhooks
-- Notes whom to tell ($3) of jobs' ($1) ends, for their tenants ($2).
WITH added AS (INSERT INTO webhook (job_id, tenant_id, url) SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[]))
UPDATE job SET has_webhook = true WHERE id = ANY ($1::uuid[])

-- name: claim_webhooks
-- Takes webhooks that are due, at most $1 and of each tenant $2, none of the tenants $3: for $4 seconds they are this
-- process's. From tenant to tenant by the index, so that one with many of them does not hide the others.
WITH RECURSIVE owner (tenant_id) AS (
    (SELECT tenant_id FROM webhook WHERE status = 'due' ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT w.tenant_id FROM webhook w WHERE w.status = 'due' AND w.tenant_id > owner.tenant_id
            ORDER BY w.tenant_id LIMIT 1)
    FROM owner WHERE owner.tenant_id IS NOT NULL
), due AS MATERIALIZED (
    SELECT own.job_id
    FROM (SELECT tenant_id FROM owner WHERE tenant_id <> ALL ($3::integer[]) ORDER BY random()) AS someone
    CROSS JOIN LATERAL (
        SELECT w.job_id FROM webhook w
        WHERE w.tenant_id = someone.tenant_id AND w.status = 'due' AND w.next_at <= now()
        ORDER BY w.next_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ) AS own
    LIMIT $1
), taken AS (
    UPDATE webhook SET attempts = attempts + 1, next_at = now() + make_interval(secs => $4)
    WHERE job_id = ANY (ARRAY(SELECT job_id FROM due))
    RETURNING job_id, tenant_id, url, event, ended_at, ends, attempts AS attempt
)
SELECT taken.*, s.secret, CASE WHEN s.rotated_at > now() - interval '1 day' THEN s.previous END AS previous
FROM taken LEFT JOIN webhook_secret s USING (tenant_id)

-- name: record_delivery
-- Logs an attempt ($3) to tell of a job's ($1) end ($2), and what is to become of the webhook ($8; another try after $9
-- seconds). An attempt that failed says nothing where another one was begun meanwhile.
WITH logged AS (
    INSERT INTO webhook_delivery (job_id, ends, attempt, event, status_code, error, seconds)
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
)
UPDATE webhook SET status = $8, next_at = CASE WHEN $8 = 'due' THEN now() + make_interval(secs => $9) END
WHERE job_id = $1 AND ends = $2 AND status = 'due' AND ($8 = 'delivered' OR attempts = $3)

-- name: disable_webhooks
-- Tells a URL ($2) no more of what a tenant's ($1) jobs named it for until now.
UPDATE webhook SET status = 'disabled', next_at = NULL
WHERE tenant_id = $1 AND url = $2 AND status IN ('waiting', 'due')

-- name: get_webhook
-- Whom a job's end is told, and how far that is.
SELECT url, status, event, attempts, next_at FROM webhook WHERE job_id = $1

-- name: webhook_deliveries
-- Attempts to tell of a job's ends, in their order.
SELECT event, attempt, at, status_code, error, seconds FROM webhook_delivery WHERE job_id = $1 ORDER BY ends, attempt

-- name: set_webhook_secret
-- Gives a tenant ($1; null: callers without a key) a secret ($2); the one before it signs as well for a day.
WITH made AS (
    INSERT INTO tenant (name) SELECT $1 WHERE $1::text IS NOT NULL ON CONFLICT (name) DO NOTHING RETURNING id
), whose AS (
    SELECT id FROM made UNION SELECT id FROM tenant WHERE name = $1 UNION SELECT 0 WHERE $1 IS NULL
)
INSERT INTO webhook_secret (tenant_id, secret) SELECT id, $2 FROM whose
ON CONFLICT (tenant_id) DO UPDATE SET previous = webhook_secret.secret, secret = EXCLUDED.secret, rotated_at = now()
RETURNING previous IS NOT NULL AS rotated

-- name: has_webhook_secret
SELECT 1 FROM webhook_secret WHERE tenant_id = $1

-- name: add_to_metrics
-- Adds what a worker process counted to what all did, in its shard ($1).
INSERT INTO metric_total (name, labels, shard, total, counts)
SELECT name, labels, $1, total, counts::bigint[]
FROM unnest($2::text[], $3::text[], $4::double precision[], $5::text[]) AS d (name, labels, total, counts)
ORDER BY name, labels
ON CONFLICT (name, labels, shard) DO UPDATE
SET total = metric_total.total + EXCLUDED.total, seen_at = now(),
    counts = (SELECT array_agg(coalesce(a, 0) + coalesce(b, 0) ORDER BY place)
              FROM unnest(metric_total.counts, EXCLUDED.counts) WITH ORDINALITY AS both_ (a, b, place))

-- name: metric_totals
-- What all worker processes counted.
SELECT name, labels, total, counts FROM metric_total

-- name: name_metric_models
-- Those of some model URIs ($1) that have a label of their own. While there are fewer than $2, what the registry has
-- confirmed gets one: so nobody can use them up with names that are no models.
WITH wanted AS (
    SELECT model_uri, seen_at FROM resolution LEFT JOIN metric_model USING (model_uri) WHERE model_uri = ANY ($1::text[])
), named AS (
    INSERT INTO metric_model (model_uri)
    SELECT model_uri FROM (
        SELECT model_uri FROM wanted WHERE seen_at < now() - interval '1 hour'
        UNION ALL
        (SELECT model_uri FROM wanted WHERE seen_at IS NULL
         LIMIT greatest(0, $2 - (SELECT count(*) FROM metric_model)))) AS due
    ORDER BY model_uri
    ON CONFLICT (model_uri) DO UPDATE SET seen_at = now()
    RETURNING model_uri
)
SELECT model_uri FROM named UNION SELECT model_uri FROM metric_model WHERE model_uri = ANY ($1::text[])

-- name: note_cache
-- What a worker process ($1) has in its cache.
UPDATE worker SET cache_bytes = $2, cache_models = $3 WHERE id = $1 RETURNING id

-- name: prune_metrics
-- Forgets what nobody counted for a week.
WITH models AS (DELETE FROM metric_model WHERE seen_at < now() - interval '7 days')
DELETE FROM metric_total WHERE seen_at < now() - interval '7 days'

-- name: queue_state
-- Queued jobs by queue and model, without those few whose process died; of at most $1 pairs, and of each no more than $2
-- counted. From pair to pair the index is entered anew, so that a long one is not read to find the next.
WITH RECURSIVE pair AS (
    (SELECT queue, model_uri, created_at, 1 AS place FROM job
     WHERE status = 'queued' AND crashes = 0 ORDER BY queue, model_uri, id LIMIT 1)
    UNION ALL
    SELECT after.queue, after.model_uri, after.created_at, pair.place + 1
    FROM pair CROSS JOIN LATERAL (
        SELECT queue, model_uri, created_at FROM job
        WHERE status = 'queued' AND crashes = 0 AND (queue, model_uri) > (pair.queue, pair.model_uri)
        ORDER BY queue, model_uri, id LIMIT 1
    ) AS after
    WHERE pair.place < $1
)
SELECT queue, model_uri, greatest(0, extract(epoch FROM now() - created_at))::double precision AS oldest_seconds,
       (SELECT count(*) FROM (SELECT FROM job WHERE status = 'queued' AND crashes = 0 AND job.queue = pair.queue
                              AND job.model_uri = pair.model_uri LIMIT $2) AS counted) AS jobs
FROM pair

-- name: count_states
-- Running and dead jobs, of each no more than $1 counted.
SELECT (SELECT count(*) FROM (SELECT FROM job WHERE status = 'running' LIMIT $1) AS r) AS running,
       (SELECT count(*) FROM (SELECT FROM job WHERE status = 'dead' LIMIT $1) AS d) AS dead

-- name: worker_state
-- Worker processes that have not said that they ended: how many were heard within $1 seconds and what is in their caches,
-- and of those heard within $2 seconds the oldest heartbeat.
SELECT count(*) FILTER (WHERE is_fresh) AS processes,
       max(seconds)::double precision AS heartbeat_age,
       coalesce(sum(cache_bytes) FILTER (WHERE is_fresh), 0)::bigint AS cache_bytes,
       coalesce(sum(cache_models) FILTER (WHERE is_fresh), 0)::bigint AS cache_models
FROM (SELECT extract(epoch FROM now() - seen_at) AS seconds, seen_at > now() - make_interval(secs => $1) AS is_fresh,
             cache_bytes, cache_models
      FROM worker WHERE stopped_at IS NULL AND seen_at > now() - make_interval(secs => $2)) AS heard

-- name: oldest_confirmation
-- Seconds since the registry last confirmed what a registered model's URI stands for, the longest. Logged models and runs,
-- which can only vanish, are looked at by turns.
SELECT extract(epoch FROM now() - min(checked_at))::double precision AS seconds FROM resolution
WHERE model_uri LIKE 'models:/%' AND model_uri !~ '^models:/m-[0-9a-f]{32}$'

-- name: serving_state
-- How many processes whose heartbeat is younger than $1 seconds serve a model URI with a version, and their memory with it.
SELECT s.model_uri, v.version, count(*) AS processes, sum(s.size_bytes)::bigint AS size_bytes
FROM serving s JOIN worker w ON w.id = s.worker_id JOIN model_version v ON v.id = s.version_id
WHERE w.stopped_at IS NULL AND w.seen_at > now() - make_interval(secs => $1)
GROUP BY s.model_uri, v.version

-- name: failing_loads
-- By model URI, the versions that a process failed to load within $1 seconds and has not loaded since.
SELECT f.model_uri, count(DISTINCT f.version_id) AS versions
FROM load_failure f JOIN worker w ON w.id = f.worker_id
WHERE f.failed_at > now() - make_interval(secs => $1) AND (f.reason IS NOT NULL OR w.stopped_at IS NOT NULL)
GROUP BY f.model_uri
