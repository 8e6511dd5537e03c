"""Publishing: pages' messages on their way to Redis, and the choice of a queue."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from pyfunq.entries import Page
from pyfunq.errors import QueueUnavailable
from pyfunq.message import message_of, queue_of

_SECONDS = 5
_AT_ONCE = 500
# Tried again once: a connection that was left alone for long may have been closed by the other side.
_OPTIONS: dict[str, Any] = {
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": True,
    "health_check_interval": 25,
}


_TURNS_TO_SEND = 2


async def sending() -> None:
    """Lets tasks that were just created write to Redis: in its second turn of the event loop redis-py has done so."""
    for _ in range(_TURNS_TO_SEND):
        await asyncio.sleep(0)


class Publisher:
    """For a worker's threads."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url, retry=Retry(NoBackoff(), 1), **_OPTIONS)

    def publish_now(self, pages: Sequence[Page]) -> None:
        """Raises QueueUnavailable; which of the pages were sent is unknown then, and rescue publishes the others."""
        try:
            for at in range(0, len(pages), _AT_ONCE):
                with self._redis.pipeline(transaction=False) as pipe:
                    for page in pages[at : at + _AT_ONCE]:
                        pipe.lpush(queue_of(page), message_of(page))
                    pipe.execute()
        except (RedisError, OSError) as exc:
            raise _unavailable(exc) from exc

    def close(self) -> None:
        self._redis.close()


class AsyncPublisher:
    """For a client's event loop, to which it belongs."""

    def __init__(self, redis_url: str) -> None:
        self._redis = AsyncRedis.from_url(redis_url, retry=AsyncRetry(NoBackoff(), 1), **_OPTIONS)
        self._chosen: dict[str, int] = {}

    async def publish(self, pages: Sequence[Page], *, early: bool = False) -> None:
        """Raises QueueUnavailable; which of the pages were sent is unknown then, and rescue publishes the others.

        `early`: the pages are being committed.
        """
        try:
            if len(pages) == 1:
                await self._redis.lpush(queue_of(pages[0]), message_of(pages[0], early=early))
                return
            for at in range(0, len(pages), _AT_ONCE):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for page in pages[at : at + _AT_ONCE]:
                        pipe.lpush(queue_of(page), message_of(page, early=early))
                    await pipe.execute()
        except (RedisError, OSError) as exc:
            raise _unavailable(exc) from exc

    async def shortest_of(self, queues: Sequence[str]) -> str:
        """The queue in which the fewest messages wait, as far as can be told."""
        lengths = dict.fromkeys(queues, 0)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.llen(queue)
                lengths = dict(zip(queues, await pipe.execute(), strict=True))
        except (RedisError, OSError):
            pass  # submits are accepted without Redis; any queue will do
        # What was chosen a moment ago may be empty yet; and other producers choose from the same.
        any_order = random.sample(queues, len(queues))
        chosen = min(any_order, key=lambda queue: (lengths[queue], self._chosen.get(queue, 0)))
        self._chosen[chosen] = max(self._chosen.values(), default=0) + 1
        return chosen

    async def aclose(self) -> None:
        await self._redis.aclose()


def _unavailable(exc: Exception) -> QueueUnavailable:
    return QueueUnavailable(f"Redis cannot be reached ({type(exc).__name__})")
