"""What the bare flow's worker and its client both know: the table of jobs, and where results are announced."""

CHANNEL = "bare:finished"
# What the planner supposes of a table that is emptied again and again is not to be a part of the measurement.
OPTIONS = {"enable_seqscan": "off"}
TABLE = """
CREATE TABLE IF NOT EXISTS job (
    id uuid PRIMARY KEY, page uuid NOT NULL, model text NOT NULL, status text NOT NULL, input bytea NOT NULL,
    prediction bigint);
CREATE INDEX IF NOT EXISTS job_page ON job (page) WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS job_model ON job (model, id) WHERE status = 'queued'
"""
