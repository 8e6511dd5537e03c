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
CREATE INDEX batch_tenant ON batch (tenant_id, id);
CREATE INDEX job_queued_tenant ON job (tenant_id) WHERE status = 'queued' AND tenant_id <> 0;

-- Only jobs that callers gave such a thing have a row.
CREATE TABLE job_note (
    id       uuid PRIMARY KEY,
    metadata text NOT NULL                  -- a JSON object, as it was given
);

-- What callers call the rows of a batch's chunk; only batches whose rows have such names have any.
CREATE TABLE batch_custom_ids (
    batch_id    uuid NOT NULL,
    batch_index integer NOT NULL,
    ids         bytea NOT NULL,             -- a JSON array of texts, one a row, deflated
    PRIMARY KEY (batch_id, batch_index)
);
ALTER TABLE batch_custom_ids ALTER COLUMN ids SET STORAGE EXTERNAL;

-- Which batch a caller's idempotency key stands for; it is taken before the request's body has come.
CREATE TABLE batch_key (
    key        text PRIMARY KEY,
    batch_id   uuid NOT NULL,
    digest     bytea,                       -- of the request; null while its body comes
    seen_at    timestamptz NOT NULL DEFAULT now(), -- when whoever submits it was last heard
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX batch_key_created ON batch_key (created_at);

-- Whom to tell of a job's end. A trigger makes it due, in the transaction that ends the job, whichever statement does; it
-- is asked only about jobs that have a webhook.
ALTER TABLE job ADD COLUMN has_webhook boolean NOT NULL DEFAULT false;

CREATE TABLE webhook_secret (
    tenant_id  integer PRIMARY KEY,         -- 0: of callers without a key
    secret     text NOT NULL,               -- HMAC needs it as it is
    previous   text,                        -- also signs for a day after a rotation
    rotated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE webhook (
    job_id    uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    url       text NOT NULL,
    status    text NOT NULL DEFAULT 'waiting'
        CHECK (status IN ('waiting', 'due', 'delivered', 'failed', 'disabled')),
    event     text,                         -- the job's last final status
    ended_at  timestamptz,
    ends      smallint NOT NULL DEFAULT 0,  -- how often the job ended: it can be tried again
    attempts  smallint NOT NULL DEFAULT 0,  -- to tell of this end
    next_at   timestamptz                   -- of the next attempt; while one is under way, when another process may try
);
CREATE INDEX webhook_due ON webhook (tenant_id, next_at) WHERE status = 'due';
CREATE INDEX webhook_open ON webhook (tenant_id, url) WHERE status IN ('waiting', 'due');

CREATE TABLE webhook_delivery (
    job_id      uuid NOT NULL REFERENCES webhook ON DELETE CASCADE,
    ends        smallint NOT NULL,
    attempt     smallint NOT NULL,
    event       text NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    status_code smallint,
    error       text,
    seconds     real NOT NULL,
    PRIMARY KEY (job_id, ends, attempt)
);

CREATE FUNCTION tell_webhook() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status IN ('queued', 'running') THEN
        UPDATE webhook SET status = 'waiting', next_at = NULL WHERE job_id = NEW.id AND status <> 'disabled';
    ELSE
        UPDATE webhook
        SET status = 'due', event = NEW.status, ended_at = NEW.finished_at, ends = ends + 1, attempts = 0, next_at = now()
        WHERE job_id = NEW.id AND status <> 'disabled';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER job_webhook AFTER UPDATE OF status ON job FOR EACH ROW
WHEN (NEW.has_webhook AND NEW.status <> OLD.status
      AND (NEW.status NOT IN ('queued', 'running') OR OLD.status NOT IN ('queued', 'running')))
EXECUTE FUNCTION tell_webhook();

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
