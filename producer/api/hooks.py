"""What other systems tell the API: MLflow, that something changed in its registry."""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from redis.asyncio import Redis
from redis.exceptions import RedisError

from producer.api.bodies import whole
from producer.api.jobs import PROBLEMS
from producer.api.problems import Problem
from pyfunq.errors import QueueUnavailable
from pyfunq.queue import request_refresh
from pyfunq.settings import Settings

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/hooks", tags=["webhooks"])

_MOST_BYTES = 256 * 1024
_WINDOW_SECONDS = 300
_REFRESH_SECONDS = 1.0
_SOCKET_SECONDS = 5
_DELIVERY_ID = re.compile(r"[!-~]{1,100}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_SIGNATURE, _TIME, _ID = "x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id"


class Refresher:
    """Asks for a look at the registry: at once, and at most once a second. Belongs to one event loop."""

    def __init__(self, refresh: Callable[[], None], *, pause_seconds: float = _REFRESH_SECONDS) -> None:
        """`refresh` may block; it raises QueueUnavailable."""
        self._refresh = refresh
        self._pause = pause_seconds
        self._is_wanted = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """What is asked while a look is being asked for is answered by the next one."""
        self._is_wanted = True
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                try:
                    await asyncio.to_thread(self._refresh)
                except QueueUnavailable as exc:
                    log.warning("MLflow told of a change; the registry watch will find it: %s", exc)
                await asyncio.sleep(self._pause)
        finally:
            self._task = None


class MlflowHook:
    """What it takes to believe MLflow."""

    def __init__(self, secret: str, redis: "Redis", refresher: Refresher) -> None:
        self._secret = secret.encode()
        self._redis = redis
        self._refresher = refresher

    def check(self, request: Request, body: bytes) -> str:
        """Returns the delivery's id. Raises Problem 401."""
        sent_id, sent_time, sent = (request.headers.get(name, "") for name in (_ID, _TIME, _SIGNATURE))
        signed = f"{sent_id}.{sent_time}.".encode("latin-1", "replace") + body
        digest = base64.b64encode(hmac.new(self._secret, signed, hashlib.sha256).digest())
        if not hmac.compare_digest(b"v1," + digest, sent.encode("latin-1", "replace")):
            raise _unbelievable("the signature is not one of this body with the secret")
        if not _DELIVERY_ID.fullmatch(sent_id) or not _TIMESTAMP.fullmatch(sent_time):
            raise _unbelievable("the delivery has no id or no time")
        if abs(time.time() - int(sent_time)) > _WINDOW_SECONDS:
            raise _unbelievable("the delivery is too old, or of the future")
        return sent_id

    async def take(self, delivery_id: str) -> None:
        """Raises Problem 409 where it was taken before, and QueueUnavailable where nobody can say."""
        key = f"pyfunq:mlflow-delivery:{hashlib.sha256(delivery_id.encode()).hexdigest()}"
        try:
            # A delivery can come from the window's beginning to its end.
            is_new = await self._redis.set(key, b"", nx=True, ex=2 * _WINDOW_SECONDS + 1)
        except (RedisError, OSError) as exc:
            raise QueueUnavailable(f"Redis cannot be reached ({type(exc).__name__})") from exc
        if not is_new:
            raise Problem(409, "this delivery was taken before", code="replayed")
        self._refresher.ask()


@asynccontextmanager
async def listening(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Makes the app listen to MLflow while the block runs, where the settings have a secret."""
    app.state.mlflow_hook = None
    if settings.mlflow_webhook_secret is None or not settings.mlflow_webhook_secret.get_secret_value():
        yield
        return
    refresher = Refresher(lambda: request_refresh(settings))
    redis = Redis.from_url(settings.redis, socket_timeout=_SOCKET_SECONDS, socket_connect_timeout=_SOCKET_SECONDS)
    app.state.mlflow_hook = MlflowHook(settings.mlflow_webhook_secret.get_secret_value(), redis, refresher)
    try:
        yield
    finally:
        await refresher.close()
        await redis.aclose()


@router.post("/mlflow", status_code=202, responses={s: PROBLEMS[s] for s in (401, 404, 409, 413, 415, 503)})
async def mlflow(request: Request) -> Response:
    """For a webhook of MLflow (`MlflowClient.create_webhook`): the registry is looked at, at most once a second."""
    hook: MlflowHook | None = request.app.state.mlflow_hook
    if hook is None:
        raise Problem(404, "MLflow is not listened to here (PYFUNQ_MLFLOW_WEBHOOK_SECRET)")
    body = await whole(request, _MOST_BYTES)
    await hook.take(hook.check(request, body))
    return Response(status_code=202)


def _unbelievable(why: str) -> Problem:
    return Problem(401, why, code="bad_signature", headers={"WWW-Authenticate": 'MLflow-Signature realm="pyfunq"'})
