"""Plain Celery: a task a job, the model cached in each process, one INSERT a result (`celery -A plain_celery worker`).

Durability: a job is a Redis message (append-only file, synced each second) until it is acknowledged, which is after its
result is committed in Postgres; what a killed worker held waits for Redis' visibility timeout, by default an hour.
Nobody knows of a job that Redis lost. Results: committed, fsync on.

PEER_BROKER, PEER_DATABASE and PEER_MODEL say where Redis, Postgres and the model's files are.
"""

import os
import warnings
from typing import Any

import mlflow
import pandas as pd
from celery import Celery
from celery.signals import worker_process_init
from peer_store import Store
from redis import Redis

COLUMNS = [f"f{i}" for i in range(20)]
CHANNEL = "peer:finished"

app = Celery("peer", broker=os.environ["PEER_BROKER"])
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    task_default_queue="peer",
    task_ignore_result=True,
    task_acks_late=True,
    # A quarter more than with 1; what a killed worker held, up to 128 jobs, waits for the visibility timeout.
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


class Child:
    """What a worker process keeps from its start on."""

    model: Any
    store: Store
    redis: Redis


child = Child()


@worker_process_init.connect
def open_child(**_: Any) -> None:
    warnings.simplefilter("ignore")
    child.model = mlflow.pyfunc.load_model(os.environ["PEER_MODEL"])
    child.store = Store(os.environ["PEER_DATABASE"])
    child.redis = Redis.from_url(os.environ["PEER_BROKER"])


@app.task(name="peer.predict")
def predict(number: int, row: list[float], announce: bool) -> None:
    """Predicts one row; `announce`: somebody waits for it."""
    prediction = int(child.model.predict(pd.DataFrame([row], columns=COLUMNS))[0])
    child.store.insert(number, prediction)
    if announce:
        child.redis.publish(CHANNEL, f"{number} {prediction}")
