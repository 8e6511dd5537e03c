"""The queue: Celery on Redis as workers, beat and Flower have it, the tasks' names, and what waits."""

import base64
import binascii
from typing import Any
from uuid import UUID

import orjson
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from pyfunq.errors import QueueUnavailable
from pyfunq.job import Lane
from pyfunq.message import TASK_PREDICT
from pyfunq.settings import Settings

TASK_REGISTRY_WATCH = "pyfunq.registry_watch"
TASK_RESCUE = "pyfunq.rescue"

CONTROL_QUEUE = "pyfunq.control"
"""Carries the periodic tasks; every worker takes from it first, whatever lanes it was started with."""


_SOCKET_SECONDS = 5
_REFRESH_SECONDS = 60


def make_app(settings: Settings) -> Celery:
    """The Celery app of every program: JSON only, acks late, two lanes of which interactive goes first.

    Redelivery is not what rescues jobs (the ledger does): a message that is delivered twice, after the visibility
    timeout, finds the jobs that are still queued. Time limits are the worker's own, a call at a time: a message may
    name a thousand jobs.
    """
    app = Celery("pyfunq", broker=settings.redis, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_retry_on_worker_lost=True,
        task_create_missing_queues=True,
        task_default_queue=str(Lane.INTERACTIVE),
        task_send_sent_event=False,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_proc_alive_timeout=120,
        # Killing what runs when Redis goes away would cost innocent jobs an attempt; the ledger sees to duplicates.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_max_tasks_per_child=settings.recycle_tasks,
        worker_max_memory_per_child=settings.recycle_memory_bytes and settings.recycle_memory_bytes // 1024,
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        broker_transport="pyfunq.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": _SOCKET_SECONDS,
            "socket_connect_timeout": _SOCKET_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "visibility_timeout": int(max(3600.0, 2 * settings.timeout_seconds)) + settings.drain_seconds,
            "priority_steps": [0],
            "queue_order_strategy": "pyfunq.turns:PriorityWithTurns",
        },
    )
    return app


def request_refresh(settings: Settings) -> None:
    """Lets a worker run the registry watch at once, if one is there within a minute. Raises QueueUnavailable."""
    try:
        with make_app(settings) as app:
            app.conf.broker_transport_options |= {"max_retries": 1, "interval_start": 0.1}
            app.send_task(
                TASK_REGISTRY_WATCH,
                kwargs={"at_once": True},
                queue=CONTROL_QUEUE,
                expires=_REFRESH_SECONDS,
                retry=False,
            )
    except (OperationalError, RedisError, OSError) as exc:
        raise QueueUnavailable(f"Redis cannot be reached ({type(exc).__name__})") from exc


def oldest_waiting_page(redis: Any, queue: str) -> UUID | None:
    """The page whose message the queue's next worker gets; None when the queue is empty. `redis` is a redis.Redis.

    A message that is not ours counts as older than every page: behind it nothing can be said to be lost.
    """
    message = redis.lindex(queue, -1)
    return None if message is None else _page_of(orjson.loads(message)) or UUID(int=0)


def _page_of(message: dict[str, Any]) -> UUID | None:
    if message.get("headers", {}).get("task") != TASK_PREDICT:
        return None
    try:
        body = message["body"]
        if message.get("properties", {}).get("body_encoding") == "base64":
            body = base64.b64decode(body)
        return UUID(orjson.loads(body)[1]["page_id"])
    except (KeyError, IndexError, TypeError, ValueError, binascii.Error):
        return None
