-- What each worker process serves, what it could not load, what operators want in memory, and queues of models' own.

ALTER TABLE resolution
    ADD COLUMN queue           text,                                       -- the model's own queue; null: that of the lane
    ADD COLUMN good_version_id integer REFERENCES model_version (id);      -- the last version that a process made ready

CREATE TABLE serving (
    worker_id    uuid NOT NULL,
    model_uri    text NOT NULL,
    version_id   integer NOT NULL REFERENCES model_version (id),
    since        timestamptz NOT NULL DEFAULT now(),
    size_bytes   bigint NOT NULL,           -- of memory
    load_seconds double precision NOT NULL,
    PRIMARY KEY (worker_id, model_uri)
);

-- A row is there from the beginning of an attempt, so that one which ends the process is remembered too.
CREATE TABLE load_failure (
    worker_id   uuid NOT NULL,
    version_id  integer NOT NULL REFERENCES model_version (id),
    model_uri   text NOT NULL,
    reason      text,                       -- null: it is being tried, or its process ended while it was
    tries       integer NOT NULL DEFAULT 1,
    failed_at   timestamptz NOT NULL DEFAULT now(),
    next_try_at timestamptz NOT NULL,
    PRIMARY KEY (worker_id, version_id)
);
CREATE INDEX load_failure_version ON load_failure (version_id);

CREATE TABLE warm_request (
    model_uri text PRIMARY KEY,
    asked_at  timestamptz NOT NULL DEFAULT now()
);

-- When the registered model had last been changed, as the registry said with the version; null: not known.
ALTER TABLE resolution ADD COLUMN updated_ms bigint;

-- Every queue that was ever a model's own: where rescue looks for jobs, also when no model has it any more.
CREATE TABLE own_queue (name text PRIMARY KEY);
