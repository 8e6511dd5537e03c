"""How often each caller may ask, and how much at once: token buckets and counts of this process."""

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from producer.api.callers import Caller
from producer.api.problems import Problem

_BURST_SECONDS = 2.0
"""A caller that was silent may ask so many seconds' worth at once."""
_MOST_BUCKETS = 10_000
_TURN = "pyfunq.turn"

R = TypeVar("R")
Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Turn:
    """What is known of a request that is under way: headers for its answer, and what to do at its end."""

    headers: Headers = field(default_factory=list)
    end: Callable[[], None] | None = None
    waiting: "asyncio.Task[Any] | None" = None
    """Works for this request alone, and can be ended at any moment."""
    is_abandoned: bool = False
    is_released: bool = False
    """The server stops."""


@dataclass(slots=True)
class _Bucket:
    per_second: float
    tokens: float
    at: float

    @property
    def burst(self) -> int:
        return max(1, int(self.per_second * _BURST_SECONDS))

    def take(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    @property
    def seconds_to_next(self) -> int:
        """Until there is a token again, rounded up; at least 1."""
        return max(1, math.ceil((1.0 - self.tokens) / self.per_second))

    def headers(self) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers names them: `q` a window of `w` seconds, `r` left, `t` until full."""
        until_full = math.ceil((self.burst - self.tokens) / self.per_second)
        return {
            "RateLimit-Policy": f'"requests";q={self.burst};w={max(1, math.ceil(self.burst / self.per_second))}',
            "RateLimit": f'"requests";r={int(self.tokens)};t={until_full}',
        }


class Rates:
    """Belongs to one event loop. Each process of the API counts for itself."""

    def __init__(
        self,
        *,
        per_second: float | None,
        at_once: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second`: of callers whose key says nothing; None: no limit. `at_once`: requests of one key."""
        self._per_second = per_second
        self._at_once = at_once
        self._clock = clock
        self._buckets: OrderedDict[UUID | None, _Bucket] = OrderedDict()
        self._under_way: Counter[UUID | None] = Counter()

    def begin(self, scope: MutableMapping[str, Any], caller: Caller) -> None:
        """Counts a request once, however often it asks who calls. Raises Problem 429."""
        turn: Turn = scope.setdefault(_TURN, Turn())
        if turn.end is not None:
            return
        key_id = caller.key.id if caller.key else None
        if self._under_way[key_id] >= self._at_once:
            raise _too_many(f"this caller has {self._at_once:,} requests under way, as many as it may", 1, {})
        self._take(turn, key_id, caller)
        self._under_way[key_id] += 1
        turn.end = lambda: self._end(key_id)

    def _take(self, turn: Turn, key_id: UUID | None, caller: Caller) -> None:
        own = caller.key.per_second if caller.key else None
        per_second = self._per_second if own is None else own
        if per_second is None:
            return
        bucket, now = self._bucket(key_id, per_second), self._clock()
        if not bucket.take(now):
            raise _too_many(f"at most {per_second:g} requests a second", bucket.seconds_to_next, bucket.headers())
        turn.headers.extend((k.lower().encode(), v.encode()) for k, v in bucket.headers().items())

    def _bucket(self, key_id: UUID | None, per_second: float) -> _Bucket:
        bucket = self._buckets.get(key_id)
        if bucket is None or bucket.per_second != per_second:
            bucket = self._buckets[key_id] = _Bucket(per_second, 0.0, self._clock())
            bucket.tokens = bucket.burst
            while len(self._buckets) > _MOST_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key_id)
        return bucket

    def _end(self, key_id: UUID | None) -> None:
        self._under_way[key_id] -= 1
        if not self._under_way[key_id]:
            del self._under_way[key_id]


def new_turn(scope: MutableMapping[str, Any]) -> Turn:
    turn = Turn()
    scope[_TURN] = turn
    return turn


def turn_of(scope: MutableMapping[str, Any]) -> Turn | None:
    return scope.get(_TURN)


async def while_asked(scope: MutableMapping[str, Any], awaited: Coroutine[Any, Any, R]) -> R | None:
    """Waits for this as long as the caller's connection lasts: nobody holds a place that he does not wait in.

    None when the server stops meanwhile: its callers are told what is known by then.
    """
    turn = turn_of(scope) or Turn()
    if turn.is_released:
        awaited.close()
        return None
    turn.waiting = waiting = asyncio.current_task()
    try:
        return await awaited
    except asyncio.CancelledError:
        if turn.is_abandoned or not turn.is_released or waiting is None:
            raise
        waiting.uncancel()
        return None
    finally:
        turn.waiting = None


def abandon(scope: Any) -> None:
    """The connection of an ASGI scope is gone: ends what only waits."""
    turn = turn_of(scope)
    if turn is not None and turn.waiting is not None:
        turn.is_abandoned = True
        turn.waiting.cancel()


def release(scope: Any) -> None:
    """The server stops: what only waits answers now."""
    turn = turn_of(scope)
    if turn is not None and not turn.is_released:
        turn.is_released = True
        if turn.waiting is not None:
            turn.waiting.cancel()


def _too_many(detail: str, seconds: int, headers: dict[str, str]) -> Problem:
    return Problem(429, detail, headers={"Retry-After": str(seconds), **headers}, retryable=True)
