"""PyFunQ's flow with nothing else in it: pages of committed jobs, a message a page, micro-batches, guarded results.

The limit for callers that wait, as the script is for backlogs: it has one model and one lane, and no retries,
heartbeats, rescue, fairness, checks of inputs, kinds of results or registry to follow.

Durability: a job is a committed row before anyone is told of it, its result likewise; nobody looks after the jobs of a
worker that was killed, nor after a page whose message was lost.

PEER_BROKER, PEER_DATABASE and PEER_MODEL say where Redis, Postgres and the model's files are
(`celery -A bare_flow worker`).
"""

import asyncio
import os
import warnings
from typing import Any
from uuid import UUID

import asyncpg
import mlflow
import orjson
import pandas as pd
from bare_table import CHANNEL, OPTIONS
from celery import Celery
from celery.signals import worker_process_init
from redis import Redis

_CLAIM = """
WITH page AS (SELECT id FROM job WHERE page = $1 AND status = 'queued' FOR UPDATE SKIP LOCKED),
along AS (
    SELECT id FROM job WHERE model = $2 AND status = 'queued' AND page <> $1 ORDER BY id LIMIT 512
    FOR UPDATE SKIP LOCKED)
UPDATE job SET status = 'running' FROM (TABLE page UNION ALL TABLE along) AS mine
WHERE job.id = ANY (ARRAY[mine.id]) RETURNING job.id, job.input
"""
_FINISH = """
UPDATE job SET status = 'succeeded', prediction = result.prediction
FROM unnest($1::uuid[], $2::bigint[]) AS result (id, prediction)
WHERE job.id = ANY (ARRAY[result.id]) AND job.status || '' = 'running'
"""

app = Celery("bare", broker=os.environ["PEER_BROKER"])
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    task_default_queue="bare",
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=2,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


class Child:
    """What a worker process keeps from its start on."""

    model: Any
    loop: asyncio.AbstractEventLoop
    connection: "asyncpg.Connection"
    redis: Redis


child = Child()


@worker_process_init.connect
def open_child(**_: Any) -> None:
    warnings.simplefilter("ignore")
    child.model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])
    child.loop = asyncio.new_event_loop()
    connect = asyncpg.connect(os.environ["PEER_DATABASE"], server_settings=OPTIONS)
    child.connection = child.loop.run_until_complete(connect)
    child.redis = Redis.from_url(os.environ["PEER_BROKER"])


@app.task(name="bare.page")
def predict_page(page: str, model: str, announce: bool) -> None:
    """Predicts what is queued of a page and up to 512 further jobs; `announce`: somebody waits for them."""
    run = child.loop.run_until_complete
    claimed = run(child.connection.fetch(_CLAIM, UUID(page), model))
    if not claimed:
        return
    inputs = [orjson.loads(row["input"])["dataframe_split"] for row in claimed]
    frame = pd.DataFrame([data for i in inputs for data in i["data"]], columns=inputs[0]["columns"])
    predictions = [int(p) for p in child.model.predict(frame)]
    ids = [row["id"] for row in claimed]
    run(child.connection.execute(_FINISH, ids, predictions))
    if announce:
        child.redis.publish(CHANNEL, b"".join(i.bytes for i in ids))
