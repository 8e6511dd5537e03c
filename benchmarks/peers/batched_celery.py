"""Celery with celery-batches: up to 256 tasks, or those of 50 ms, are predicted in one call and stored by one INSERT.

Durability: as plain Celery's while nothing fails; but when a batch fails, if only because of one of its rows, all its
tasks are acknowledged and lost. Needs Celery below 5.7. The same environment as `plain_celery`.
"""

import os
import warnings
from typing import Any

import mlflow
import pandas as pd
from celery import Celery
from celery.signals import worker_process_init
from celery_batches import Batches
from peer_store import Store
from redis import Redis

COLUMNS = [f"f{i}" for i in range(20)]
CHANNEL = "peer:finished"
FLUSH_TASKS = 256
FLUSH_SECONDS = 0.05

app = Celery("peer", broker=os.environ["PEER_BROKER"])
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    task_default_queue="peer",
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=FLUSH_TASKS,
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


@app.task(name="peer.predict", base=Batches, flush_every=FLUSH_TASKS, flush_interval=FLUSH_SECONDS)
def predict(requests: list[Any]) -> None:
    numbers, rows, announced = zip(*(request.args for request in requests), strict=True)
    predictions = [int(p) for p in child.model.predict(pd.DataFrame(rows, columns=COLUMNS))]
    child.store.insert_many(numbers, predictions)
    if any(announced):
        with child.redis.pipeline(transaction=False) as pipeline:
            for number, prediction in zip(numbers, predictions, strict=True):
                pipeline.publish(CHANNEL, f"{number} {prediction}")
            pipeline.execute()
