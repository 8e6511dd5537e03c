"""The queue: Celery on Redis as both sides configure it, the tasks' names, and publishing of pages."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import UUID

import orjson
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from pyfunq.entries import Page
from pyfunq.errors import QueueUnavailable
from pyfunq.job import Lane
from pyfunq.settings import Settings

TASK_PREDICT = "pyfunq.predict"
TASK_REGISTRY_WATCH = "pyfunq.registry_watch"
TASK_RESCUE = "pyfunq.rescue"

CONTROL_QUEUE = "pyfunq.control"
"""Carries the periodic tasks; every worker takes from it first, whatever lanes it was started with."""


def first_queue(lane: str) -> str:
    """Goes before a lane, wherever that is taken from: for jobs that lost their process once, and waited already."""
    return f"{lane}.first"


FINISHED_CHANNEL = "pyfunq:finished"
"""Redis channel on which workers announce the ids of final jobs: 16 bytes each, one after another. A hint only."""

_SOCKET_SECONDS = 5
_PUBLISH_BATCH = 500


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
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": _SOCKET_SECONDS,
            "socket_connect_timeout": _SOCKET_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "visibility_timeout": int(max(3600.0, 2 * settings.timeout_seconds)) + settings.drain_seconds,
            "queue_order_strategy": "priority",
        },
    )
    return app


class Publisher:
    """Sends pages' messages over one reused connection, from a thread of its own."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pyfunq-publish")

    async def publish(self, pages: Sequence[Page]) -> None:
        """Raises QueueUnavailable; which of the pages were sent is unknown then, and rescue publishes the others."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.publish_now, pages)

    def publish_now(self, pages: Sequence[Page]) -> None:
        try:
            with self._connected().batch(_PUBLISH_BATCH):
                for page in pages:
                    self._send(page)
        except (KombuError, RedisError, OSError) as exc:
            self._disconnect()
            raise QueueUnavailable(f"Redis cannot be reached ({type(exc).__name__})") from exc

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._disconnect()

    def _connected(self) -> Any:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=_SOCKET_SECONDS)
            self._producer = self._app.amqp.Producer(self._connection)
        return self._producer

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(KombuError, RedisError, OSError):
                connection.release()

    def _send(self, page: Page) -> None:
        self._app.send_task(
            TASK_PREDICT,
            kwargs={"page_id": str(page.id)},
            task_id=str(page.id),
            queue=first_queue(page.lane) if page.first else page.lane,
            producer=self._producer,
            ignore_result=True,
            retry=False,
            argsrepr=f"{page.model_uri} · {page.jobs} job{'s' if page.jobs != 1 else ''}",
            kwargsrepr=f"lane={page.lane}",
        )


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
