-- Who may ask over HTTP, whose a job is, and what callers want to find with it again.

CREATE TABLE tenant (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_key (
    id              uuid PRIMARY KEY,
    tenant_id       integer NOT NULL REFERENCES tenant (id),
    name            text NOT NULL,
    prefix          text NOT NULL,          -- what people may see of it
    digest          bytea NOT NULL UNIQUE,  -- SHA-256; the key itself is shown once, and kept nowhere
    scopes          text[] NOT NULL,
    models          text[] NOT NULL,        -- patterns of model URIs; none: all that the operator allows
    per_second      double precision,       -- requests; null: no limit of its own
    max_queued_jobs integer,                -- of its tenant; null: no limit of its own
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz,
    revoked_at      timestamptz,
    used_at         timestamptz             -- to the minute
);

-- 0: submitted without a key, by a program that has the database's address.
ALTER TABLE job ADD COLUMN tenant_id integer NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN tenant_id integer NOT NULL DEFAULT 0;
CREATE INDEX job_tenant ON job (tenant_id, id) WHERE tenant_id <> 0;
CREATE INDEX job_queued_tenant ON job (tenant_id) WHERE status = 'queued' AND tenant_id <> 0;

-- Only jobs that callers gave such a thing have a row.
CREATE TABLE job_note (
    id       uuid PRIMARY KEY,
    metadata text NOT NULL                  -- a JSON object, as it was given
);

-- What worker processes counted, all together. In shards, so that many of them seldom wait for one another.
CREATE TABLE metric_total (
    name    text NOT NULL,
    labels  text NOT NULL,                       -- a JSON array of their values
    shard   smallint NOT NULL,
    total   double precision NOT NULL,
    counts  bigint[],                            -- of a histogram, by bucket; `total` is then the sum
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, labels, shard)
) WITH (fillfactor = 50);

-- The model URIs that have a label of their own.
CREATE TABLE metric_model (
    model_uri text PRIMARY KEY,
    seen_at   timestamptz NOT NULL DEFAULT now() -- to the hour
);

-- What a worker process has in its cache, as of its last heartbeat.
ALTER TABLE worker ADD COLUMN cache_bytes bigint NOT NULL DEFAULT 0, ADD COLUMN cache_models integer NOT NULL DEFAULT 0;
