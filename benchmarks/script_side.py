"""The script written by hand as a side of the comparison: its processes are warm before the clock begins."""

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from benchmarks.celery_side import peer_environment
from benchmarks.models import Backlog, Model
from benchmarks.peers.peer_store import TABLE_WITHOUT_KEY
from benchmarks.servers import Servers, new_database
from benchmarks.sessions import Answers, Conversation


class Script:
    def __init__(self, servers: Servers, processes: int) -> None:
        self.servers, self.processes = servers, processes
        self.name = f"script, {processes} process{'es' if processes > 1 else ''}"
        self.database = ""

    async def prepare(self) -> None:
        self.database = await new_database(self.servers.database, f"script_{self.processes}")

    @asynccontextmanager
    async def serving(self, model: Model) -> AsyncIterator["ScriptSession"]:
        connection = await asyncpg.connect(self.database)
        await connection.execute(TABLE_WITHOUT_KEY)
        options = ["--model", str(model.files), "--database", self.database, "--processes", str(self.processes)]
        log = self.servers.home / f"script-{self.processes}.log"
        conversation = Conversation([sys.executable, "script.py", *options], peer_environment(), log)
        try:
            await conversation.answer()
            yield ScriptSession(conversation, connection)
        finally:
            await conversation.close()
            await connection.close()


class ScriptSession:
    def __init__(self, conversation: Conversation, connection: "asyncpg.Connection") -> None:
        self._conversation, self._connection = conversation, connection

    async def backlog(self, backlog: Backlog) -> Answers:
        await self._connection.execute("TRUNCATE prediction")
        begun = time.perf_counter()
        await self._conversation.ask(str(backlog.path))
        seconds = time.perf_counter() - begun
        found = await self._connection.fetch("SELECT prediction FROM prediction ORDER BY number")
        return Answers(seconds, [row[0] for row in found])
