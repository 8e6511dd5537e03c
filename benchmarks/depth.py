"""Workload (g): jobs/s of the worker with more and more queued, and with many finished jobs in the ledger."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from redis.asyncio import Redis

from benchmarks.failure import BenchmarkFailed
from benchmarks.figures import Workload
from benchmarks.models import Model, Predictions, random_rows, split_inputs
from benchmarks.pyfunq_side import PAGE, Ledger, PyFunQ
from benchmarks.sessions import GIVE_UP_SECONDS, no_collections
from pyfunq.client import AsyncClient
from pyfunq.waiting import FINISHED_CHANNEL

DEPTHS = (1_000, 10_000, 100_000, 1_000_000)
DEPTH_WITH_HISTORY = 10_000
DISTINCT_ROWS = 20_000
ID_BYTES = 16
IN_HAND = 2 * PAGE
"""What two processes have claimed does not count as queued."""
_HISTORY_ROWS = 1_000_000
_COLUMNS = (
    "SELECT quote_ident(column_name) FROM information_schema.columns "
    "WHERE table_name = 'job' AND column_name NOT IN ('id', 'page_id') AND is_generated = 'NEVER'"
)
_FILLED = (
    "SELECT option_value::integer FROM pg_class, pg_options_to_table(reloptions) "
    "WHERE oid = 'job'::regclass AND option_name = 'fillfactor'"
)


class Steady:
    """A producer that keeps as many jobs queued as it is told: a page is submitted when as many jobs are finished."""

    def __init__(self, client: AsyncClient, redis: Redis, model: Model, inputs: Sequence[Any]) -> None:
        self._client, self._redis, self._model, self._inputs = client, redis, model, inputs
        self.submitted = self._finished = 0

    async def __aenter__(self) -> "Steady":
        self._channel = self._redis.pubsub()
        await self._channel.subscribe(FINISHED_CHANNEL)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.aclose()  # type: ignore[no-untyped-call]

    async def submit(self, jobs: int) -> None:
        for _ in range(0, jobs, PAGE):
            at = self.submitted % len(self._inputs)
            await self._client.submit_many(self._model.uri, self._inputs[at : at + PAGE])
            self.submitted += PAGE

    async def finish(self, jobs: int) -> float:
        """Seconds until so many more are finished, the queue being kept as deep as it is."""
        depth, wanted, begun = self.submitted - self._finished, self._finished + jobs, time.perf_counter()
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while self._finished < wanted:
            message = await self._channel.get_message(ignore_subscribe_messages=True, timeout=5.0)
            if message is not None:
                self._finished += len(message["data"]) // ID_BYTES
            elif time.monotonic() > deadline:
                raise BenchmarkFailed("PyFunQ: no job is finished any more")
            while self.submitted - self._finished <= depth - PAGE:
                await self.submit(PAGE)
        return time.perf_counter() - begun


async def jobs_a_second(
    pyfunq: PyFunQ, ledger: Ledger, model: Model, depth: int, window: int
) -> tuple[float, Predictions]:
    """Claimed to finished, over a window of jobs while `depth` are queued; then the jobs of this call are worked off.

    The producer works all the while, with as much to do at any depth. Also returns what should be predicted.
    """
    rows = random_rows(DISTINCT_ROWS, seed=4)
    inputs = split_inputs(rows)
    async with (
        AsyncClient(pyfunq.settings) as client,
        Redis.from_url(pyfunq.settings.redis) as redis,
        Steady(client, redis, model, inputs) as steady,
    ):
        await steady.submit(depth + IN_HAND)
        async with pyfunq.worker.turn():
            with no_collections():
                await steady.finish(window // 4)
                seconds = await steady.finish(window)
            await ledger.until_done()
    return window / seconds, np.resize(model.truth(rows), steady.submitted)


Rate = Callable[[], Awaitable[float]]
Measure = Callable[[Rate], Awaitable[float]]
"""Calls what it is given once, or again where that was disturbed; what was written before is on disk then."""


async def measure_depth(
    workload: Workload,
    pyfunq: PyFunQ,
    model: Model,
    depths: Sequence[int],
    window: int,
    measure: Measure,
) -> None:
    async with Ledger(pyfunq.settings) as ledger:

        async def once(depth: int) -> float:
            await ledger.forget()
            rate, truth = await jobs_a_second(pyfunq, ledger, model, depth, window)
            await ledger.check_counts(truth)
            return rate

        for depth in depths:
            rate = await measure(partial(once, depth))
            workload.add(pyfunq.name, model.name, f"{depth:,} queued, jobs/s", rate)
            print(f"  {depth:,} queued: {rate:,.0f} jobs/s", flush=True)
        await ledger.forget()


async def measure_history(
    workload: Workload,
    pyfunq: PyFunQ,
    model: Model,
    finished: int,
    window: int,
    rounds: int,
    measure: Measure,
) -> None:
    """The ledger is filled once; every round finds its jobs and those of the rounds before in it."""
    async with Ledger(pyfunq.settings) as ledger:
        await ledger.forget()
        await jobs_a_second(pyfunq, ledger, model, PAGE, PAGE)
        begun = time.perf_counter()
        await add_finished(ledger, finished)
        print(f"  {finished:,} finished jobs added in {time.perf_counter() - begun:,.0f} s", flush=True)

        async def once() -> float:
            rate, _ = await jobs_a_second(pyfunq, ledger, model, DEPTH_WITH_HISTORY, window)
            await ledger.check_none_failed()
            return rate

        for _ in range(rounds):
            rate = await measure(once)
            title = f"{DEPTH_WITH_HISTORY:,} queued, {finished:,} finished, jobs/s"
            workload.add(pyfunq.name, model.name, title, rate)
            print(f"  {title}: {rate:,.0f}", flush=True)
        await ledger.forget()


async def add_finished(ledger: Ledger, jobs: int) -> None:
    """Copies of a finished job, older than any other, with ids as the client makes them (time first).

    Their pages are full. At the fill factor that leaves room for updates, equal rows would leave each page space for
    just one new job, so that every job would read, change and log a page of its own, as in no ledger that grew.
    """
    filled = await ledger.connection.fetchval(_FILLED)
    await ledger.connection.execute("ALTER TABLE job SET (fillfactor = 100)")
    columns = ", ".join(row[0] for row in await ledger.connection.fetch(_COLUMNS))
    one = await ledger.connection.fetchval("SELECT id FROM job WHERE status = 'succeeded' LIMIT 1")
    identifier = "(lpad(to_hex(1600000000000 + n / 10), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid"
    for at in range(0, jobs, _HISTORY_ROWS):
        upto = min(jobs, at + _HISTORY_ROWS) - 1
        numbers = f"generate_series({at}::bigint, {upto}) AS n"
        for table, ids, copied in (("job", ("id", "page_id"), columns), ("job_input", ("id",), "input, params")):
            made, original = ", ".join([identifier] * len(ids)), f"(SELECT * FROM {table} WHERE id = '{one}') AS one"  # noqa: S608
            statement = (
                f"INSERT INTO {table} ({', '.join(ids)}, {copied}) SELECT {made}, {copied} FROM {numbers}, {original}"  # noqa: S608
            )
            await ledger.connection.execute(statement, timeout=3600)
    await ledger.connection.execute(f"ALTER TABLE job SET (fillfactor = {filled})")
    await ledger.connection.execute("VACUUM (ANALYZE) job, job_input", timeout=3600)
    await asyncio.sleep(1)
