"""PyFunQ as a side of the comparison: its worker, its ledger, and the client as its users would use it."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
from redis import Redis

from benchmarks.failure import BenchmarkFailed
from benchmarks.models import Backlog, Model, Predictions, check, random_rows, split_inputs
from benchmarks.servers import Worker
from benchmarks.sessions import GIVE_UP_SECONDS, Answers, Rows, by_callers, no_collections
from pyfunq.client import AsyncClient
from pyfunq.job import Job, Lane
from pyfunq.lanes import first_queue, queues_of
from pyfunq.settings import Settings

PAGE = 1_000
PAGES_IN_FLIGHT = 2
WARM_JOBS = 3_000
WARM_CALLS = 50
POLL_SECONDS = 0.01
# What the ledger knows of models and processes stays when its jobs are forgotten.
_KEPT = ("model_version", "resolution", "worker", "upkeep_run")
# The condition on pages: so that the index on them serves.
OPEN = (
    "SELECT EXISTS (SELECT FROM job WHERE status = 'queued' AND page_id >= '00000000-0000-0000-0000-000000000000') "
    "OR EXISTS (SELECT FROM job WHERE status = 'running')"
)
_TABLES = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' AND tablename <> ALL ($1)"
_ROWS_SINCE = (
    "SELECT coalesce(sum(rows), 0)::bigint FROM job "
    "WHERE batch_id IS NOT NULL AND finished_at >= $1 AND status = 'succeeded'"
)
_PREDICTIONS = "SELECT job_id, prediction::text FROM model_predictions"
_COUNTS = "SELECT prediction::text, count(*) FROM model_predictions GROUP BY 1"


class Ledger:
    """What the benchmarks ask of the database besides the client."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> "Ledger":
        # Where the planner thinks a table small it would read it whole.
        options = {"enable_seqscan": "off"}
        self.connection = await asyncpg.connect(self._settings.database, server_settings=options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    async def until_done(self) -> None:
        """Returns when no job is queued or running."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while await self.connection.fetchval(OPEN):
            if time.monotonic() > deadline:
                raise BenchmarkFailed("PyFunQ: jobs are still not finished")
            await asyncio.sleep(POLL_SECONDS)

    async def predictions(self, ids: Sequence[UUID]) -> list[float]:
        """Of single-row jobs, in the order of `ids`."""
        found = {job: float(text.strip("[]")) for job, text in await self.connection.fetch(_PREDICTIONS)}
        if missing := sum(1 for job in ids if job not in found):
            raise BenchmarkFailed(f"PyFunQ: {missing} of {len(ids)} jobs have no result")
        return [found[job] for job in ids]

    async def check_counts(self, expected: Predictions) -> None:
        """Whether as many jobs have each prediction as should; for more jobs than anyone wants to read."""
        counted = await self.connection.fetch(_COUNTS)
        found = {float(text.strip("[]")): count for text, count in counted}
        values, counts = np.unique(expected, return_counts=True)
        wanted = {float(value): int(count) for value, count in zip(values, counts, strict=True)}
        if found != wanted:
            raise BenchmarkFailed(f"PyFunQ: predictions {found}, not {wanted}")

    async def check_none_failed(self) -> None:
        query = "SELECT count(*) FROM job WHERE status NOT IN ('queued', 'running', 'succeeded', 'cancelled')"
        if failed := await self.connection.fetchval(query):
            raise BenchmarkFailed(f"PyFunQ: {failed} jobs did not succeed")

    async def forget(self) -> None:
        """Empties the ledger of jobs and the queue of messages."""
        names = [row[0] for row in await self.connection.fetch(_TABLES, _KEPT) if "migration" not in row[0]]
        await self.connection.execute(f"TRUNCATE {', '.join(names)}")
        with Redis.from_url(self._settings.redis) as redis:
            redis.delete(*(name for lane in Lane for name in (first_queue(lane), *queues_of(lane))))


class PyFunQ:
    """One worker for the whole run; it stands still while it is another's turn."""

    name = "PyFunQ"
    has_queue, takes_beforehand = True, False

    def __init__(self, worker: Worker) -> None:
        self.worker, self.settings = worker, worker.settings

    @asynccontextmanager
    async def serving(self, model: Model) -> AsyncIterator["PyFunQSession"]:
        async with self.worker.turn(), AsyncClient(self.settings) as client, Ledger(self.settings) as ledger:
            session = PyFunQSession(client, ledger, model)
            rows = random_rows(WARM_JOBS, seed=2)
            check("PyFunQ, warming up", (await session.at_once(rows)).predictions, model.truth(rows))
            await session.callers(rows[:WARM_CALLS], 1)
            yield session


class PyFunQSession:
    def __init__(self, client: AsyncClient, ledger: Ledger, model: Model) -> None:
        self.client, self.ledger, self.model = client, ledger, model

    async def at_once(self, rows: Rows, *, beforehand: bool = False) -> Answers:
        inputs = split_inputs(rows)
        pages: dict[int, Sequence[Job]] = {}
        places = iter(range(0, len(inputs), PAGE))

        async def submit_pages() -> None:
            for at in places:
                pages[at] = await self.client.submit_many(self.model.uri, inputs[at : at + PAGE])

        with no_collections():
            begun = time.perf_counter()
            # The next page is encoded while the last one is committed.
            await asyncio.gather(*(submit_pages() for _ in range(PAGES_IN_FLIGHT)))
            await self.ledger.until_done()
            seconds = time.perf_counter() - begun
        predictions = await self.ledger.predictions([job.id for at in sorted(pages) for job in pages[at]])
        await self.ledger.forget()
        return Answers(seconds, predictions)

    async def call(self, one: Any) -> float:
        job = await self.client.submit(self.model.uri, one)
        result = await self.client.result(job)
        return float(result[0])

    async def callers(self, rows: Rows, callers: int) -> Answers:
        answers = await self._ask(rows, callers)
        await self.ledger.until_done()
        await self.ledger.forget()
        return answers

    async def beside_a_backlog(self, rows: Rows) -> tuple[Answers, float]:
        """One caller, and how many rows/s of batches were finished meanwhile."""
        connection = self.ledger.connection
        begun = await connection.fetchval("SELECT now()")
        answers = await self._ask(rows, 1)
        done = await connection.fetchval(_ROWS_SINCE, begun)
        if not done:
            raise BenchmarkFailed("PyFunQ: no backlog was worked off meanwhile")
        return answers, done / answers.seconds

    async def _ask(self, rows: Rows, callers: int) -> Answers:
        inputs = split_inputs(rows)
        return await by_callers(lambda number: self.call(inputs[number]), len(rows), callers)

    async def backlog(self, backlog: Backlog, *, by_reference: bool) -> Answers:
        """From the call of `submit_batch` to the return of `wait_batch`; the results are read afterwards."""
        options: dict[str, Any] = {"by_reference": True} if by_reference else {}
        begun = time.perf_counter()
        batch = await self.client.submit_batch(self.model.uri, backlog.path, **options)
        await self.client.wait_batch(batch)
        seconds = time.perf_counter() - begun
        parts = []
        async for part in self.client.batch_results(batch):
            if part.error is not None:
                raise part.error
            parts.append(np.asarray(part.result).ravel())
        await self.ledger.forget()
        return Answers(seconds, np.concatenate(parts))


def knows_by_reference() -> bool:
    return "by_reference" in inspect.signature(AsyncClient.submit_batch).parameters


def input_roots(directory: Path) -> dict[str, str]:
    """Lets workers and clients read the backlog's file themselves."""
    return {"PYFUNQ_INPUT_ROOTS": str(directory)}
