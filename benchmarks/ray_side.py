"""Ray Serve's asynchronous inference as a side of the comparison: client and replicas are a program in a venv."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.celery_side import peer_environment
from benchmarks.models import Model, check, random_rows
from benchmarks.servers import Servers
from benchmarks.sessions import Answers, Conversation, Rows

WARM_ROWS = 100


class RayServe:
    name = "Ray Serve async"
    has_queue, takes_beforehand = True, False

    def __init__(self, servers: Servers, redis_number: int, venv: Path) -> None:
        self.servers, self.venv = servers, venv
        self.broker = servers.redis_database(redis_number)

    @asynccontextmanager
    async def serving(self, model: Model) -> AsyncIterator["RaySession"]:
        with Redis.from_url(self.broker) as redis:
            redis.flushdb()
        environment = peer_environment(
            PEER_BROKER=self.broker,
            PEER_MODEL=model.files,
            RAY_USAGE_STATS_ENABLED="0",
            # Else Ray writes one into the user's home.
            RAY_AUTH_TOKEN=secrets.token_hex(32),
        )
        log = self.servers.home / "ray-serve.log"
        conversation = Conversation([self.venv / "bin" / "python", "ray_serve.py"], environment, log)
        try:
            await conversation.answer()
            session = RaySession(conversation)
            rows = random_rows(WARM_ROWS, seed=2)
            check(f"{self.name}, warming up", (await session.callers(rows, 8)).predictions, model.truth(rows))
            yield session
        finally:
            await conversation.close()


class RaySession:
    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    async def at_once(self, rows: Rows, *, beforehand: bool = False) -> Answers:
        return await self._ask(rows, 0)

    async def callers(self, rows: Rows, callers: int) -> Answers:
        return await self._ask(rows, callers)

    async def _ask(self, rows: Rows, callers: int) -> Answers:
        done: dict[str, Any] = await self._conversation.ask_json({"rows": rows.tolist(), "callers": callers})
        return Answers(done["seconds"], done["predictions"], done["latencies"])
