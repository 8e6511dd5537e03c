"""The ledger: the Postgres tables that are the only truth about a job, spoken to through asyncpg."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from pyfunq.batch_ledger import BatchLedger, stored_of
from pyfunq.entries import (
    ClaimedJob,
    Crashed,
    Keys,
    NewJob,
    Outcome,
    Page,
    StoredResult,
    not_needed,
)
from pyfunq.errors import LedgerUnavailable, MigrationNeeded, UnknownJob
from pyfunq.job import STATUSES, Job, JobError, JobStatus, job_of
from pyfunq.key_ledger import KeyLedger
from pyfunq.lanes import lane_of, queues_of
from pyfunq.metric_ledger import MetricLedger
from pyfunq.model_ledger import ModelLedger
from pyfunq.new_rows import copies, submission
from pyfunq.sql import queries
from pyfunq.webhook_ledger import WebhookLedger

_CONNECT_SECONDS = 10.0
_COMMAND_SECONDS = 60.0
_RUNNING = str(JobStatus.RUNNING)
_COPY_BYTES = 2 * 1024 * 1024
"""From so many bytes of input on COPY is faster: a statement's arguments that exceed `work_mem` go through a file."""
# Every statement has an index to go by. A plan that was made while the table was small would read all of it later.
_SERVER_SETTINGS = {
    "application_name": "pyfunq",
    "jit": "off",
    "enable_seqscan": "off",
    # What is hot is in memory: an index that is entered at the right place is never dearer than one that is read whole.
    "random_page_cost": "1",
    # A process that is stopped inside a transaction would hold up all who submit with its keys.
    "idle_in_transaction_session_timeout": "10000",
}


@contextmanager
def ledger_errors() -> Iterator[None]:
    """Turns what asyncpg raises when Postgres is away, or its tables are old, into PyFunQ's errors."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as exc:
        raise MigrationNeeded from exc
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as exc:
        raise LedgerUnavailable("Postgres refused the user or password of PYFUNQ_DATABASE_URL") from exc
    except asyncpg.InvalidCatalogNameError as exc:
        raise LedgerUnavailable("the database named in PYFUNQ_DATABASE_URL does not exist") from exc
    except (
        OSError,
        TimeoutError,
        asyncpg.PostgresConnectionError,
        asyncpg.InterfaceError,
        asyncpg.CannotConnectNowError,
        asyncpg.AdminShutdownError,
        asyncpg.CrashShutdownError,
        asyncpg.IdleInTransactionSessionTimeoutError,
        asyncpg.TooManyConnectionsError,
    ) as exc:
        raise LedgerUnavailable(f"Postgres cannot be reached ({type(exc).__name__})") from exc


class Ledger(BatchLedger, ModelLedger, KeyLedger, WebhookLedger, MetricLedger):
    """Everything that is asked of the tables. Belongs to the event loop (and process) that opened it."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._sql = queries()

    @classmethod
    @asynccontextmanager
    async def open(cls, database_url: str, *, max_connections: int = 10) -> AsyncIterator["Ledger"]:
        """A ledger with a pool of its own. Raises LedgerUnavailable when Postgres does not answer within 10 s."""
        with ledger_errors():
            pool = await asyncpg.create_pool(
                database_url,
                min_size=1,
                max_size=max_connections,
                timeout=_CONNECT_SECONDS,
                command_timeout=_COMMAND_SECONDS,
                server_settings=_SERVER_SETTINGS,
                reset=_nothing_to_reset,
            )
        try:
            yield cls(pool)
        finally:
            await _close(pool)

    async def _fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        with ledger_errors():
            rows: list[asyncpg.Record] = await self._pool.fetch(self._sql[query], *args)
            return rows

    async def _fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        with ledger_errors():
            return await self._pool.fetchrow(self._sql[query], *args)

    async def _execute(self, query: str, *args: Any) -> None:
        with ledger_errors():
            await self._pool.execute(self._sql[query], *args)

    # Submitting.

    async def submit(
        self, jobs: Sequence[tuple[UUID, NewJob]], *, keys_last_seconds: float = 86_400.0
    ) -> dict[UUID, UUID | None]:
        """Accepts (page id, job) pairs, all or none, in one transaction.

        Returns those that were not needed, because their idempotency key stands for another job already: that job's id,
        or None where it is of another request.
        """
        chunks = any(job.batch_id for _, job in jobs)
        if chunks:
            jobs = sorted(jobs, key=_place)
        if not any(job.idempotency_key or job.metadata or job.webhook for _, job in jobs):
            if sum(len(job.input.payload) for _, job in jobs) >= _COPY_BYTES:
                await self._submit_by_copy(jobs)
            else:
                statement, arguments = submission(jobs)
                await self._execute(statement, *arguments)
            return {}
        with ledger_errors():
            async with self._pool.acquire() as connection, connection.transaction(isolation="read_committed"):
                others = not_needed(jobs, await self._take_keys(connection, jobs, keys_last_seconds))
                new = [(page, job) for page, job in jobs if job.id not in others]
                if new:
                    statement, arguments = submission(new)
                    await connection.execute(self._sql[statement], *arguments)
                if noted := {job.id: job.metadata for _, job in new if job.metadata}:
                    await connection.execute(self._sql["note_jobs"], list(noted), list(noted.values()))
                if told := [job for _, job in new if job.webhook]:
                    columns = zip(*((job.id, job.tenant_id, job.webhook) for job in told), strict=True)
                    await connection.execute(self._sql["add_webhooks"], *map(list, columns))
        return others

    async def submit_again(
        self, jobs: Sequence[tuple[UUID, NewJob]], *, keys_last_seconds: float = 86_400.0
    ) -> dict[UUID, UUID | None]:
        """`submit` after one of the same jobs whose connection broke: waits for it; only one of them is committed."""
        try:
            return await self.submit(jobs, keys_last_seconds=keys_last_seconds)
        except asyncpg.UniqueViolationError:  # the first one was committed
            keys = [job.idempotency_key for _, job in jobs if job.idempotency_key]
            return not_needed(jobs, await self.keys(keys, last_seconds=keys_last_seconds)) if keys else {}

    async def _submit_by_copy(self, jobs: Sequence[tuple[UUID, NewJob]]) -> None:
        """Jobs, then inputs; where a chunk is there already, the statement `submit_chunks` leaves it out."""
        with ledger_errors():
            try:
                async with self._pool.acquire() as connection, connection.transaction(isolation="read_committed"):
                    for table, columns, records in copies(jobs):
                        await connection.copy_records_to_table(table, records=records, columns=columns)
            except asyncpg.UniqueViolationError:
                if not any(job.batch_id for _, job in jobs):
                    raise
                statement, arguments = submission(jobs)
                await self._pool.execute(self._sql[statement], *arguments)

    async def _take_keys(self, connection: Any, jobs: Sequence[tuple[UUID, NewJob]], last_seconds: float) -> Keys:
        """Each key's job: of these jobs the first, or one that was accepted before."""
        first = {job.idempotency_key: job for _, job in reversed(jobs) if job.idempotency_key}
        if not first:
            return {}
        keys = sorted(first)  # one order everywhere, so that two transactions never wait for each other
        wanted = [first[key] for key in keys]
        await connection.execute(
            self._sql["take_keys"], keys, [job.request for job in wanted], [job.id for job in wanted], last_seconds
        )
        # A statement of its own: it sees what a concurrent transaction, for which the first one waited, committed.
        return _keys(await connection.fetch(self._sql["read_keys"], keys, last_seconds))

    async def keys(self, keys: Sequence[str], *, last_seconds: float) -> Keys:
        """What those of the idempotency keys stand for that stand for anything."""
        return _keys(await self._fetch("read_keys", list(keys), last_seconds))

    async def drop_old_keys(self, *, older_than_seconds: float) -> None:
        """Forgets idempotency keys, 10,000 at most."""
        await self._execute("drop_old_keys", older_than_seconds)

    async def count_queued(self, line: str, *, at_most: int) -> int:
        """Queued jobs of a lane, or of a lane in a model's own queue; counting ends at `at_most`."""
        row = await self._fetchrow("count_queued", queues_of(line), at_most)
        return int(row["count"]) if row else 0

    async def cancel(self, ids: Sequence[UUID], *, terminate: bool = False) -> list[UUID]:
        """Cancels what is not final; returns the ids of what was. `terminate`: workers are to stop the jobs' calls."""
        return [r["id"] for r in await self._fetch("cancel", list(ids), terminate)]

    async def requeue_dead(self, ids: Sequence[UUID], pages: Sequence[UUID]) -> list[Page]:
        """Puts dead jobs back with all their attempts; returns the pages that the caller must publish."""
        return [Page(**r) for r in await self._fetch("requeue_dead", list(ids), list(pages))]

    async def try_again(self, ids: Sequence[UUID], pages: Sequence[UUID]) -> list[Page]:
        """Puts back jobs that ended without success; returns the pages that the caller must publish."""
        return [Page(**r) for r in await self._fetch("try_again", list(ids), list(pages))]

    async def purge_dead(self, *, older_than_seconds: float) -> int:
        """Deletes dead jobs for good; returns how many."""
        purged = 0
        while gone := len(await self._fetch("purge_dead", older_than_seconds)):
            purged += gone
        return purged

    # Working.

    async def claim(
        self, page_id: UUID, worker_id: UUID, *, max_jobs: int, max_rows: int, max_bytes: int
    ) -> list[ClaimedJob]:
        """The page's queued jobs, then other queued jobs of the same model and queue while there is room.

        At least one job is taken if the page has one, however large; an empty list means that the page is done.
        """
        rows = await self._fetch("claim", page_id, worker_id, max_jobs, max_rows, max_bytes)
        return sorted(map(ClaimedJob._make, rows))

    async def is_there(self, job_id: UUID) -> bool:
        """Whether the job was accepted."""
        return bool(await self._fetch("is_there", job_id))

    async def finish(self, worker_id: UUID, outcomes: Sequence[Outcome]) -> set[UUID]:
        """Records outcomes in one statement; returns the ids that were still this worker's to record."""
        ids, attempts = [o.job.id for o in outcomes], [o.job.attempt for o in outcomes]
        kinds = {(o.status, o.version_id, o.result_format) for o in outcomes}
        if len(kinds) == 1 and all(o.confidence is None and o.error is None for o in outcomes):
            # Most are alike; an array for each column would cost more than all else of this.
            ((status, version_id, result_format),) = kinds
            alike = (str(status), version_id, result_format, ids, attempts, [o.result for o in outcomes])
            rows = await self._fetch("finish_alike", worker_id, _RUNNING, *alike)
        else:
            each = [
                (
                    *(str(o.status), o.version_id, o.result_format, o.result),
                    *(_real_array(o.confidence), o.error and o.error.code, o.error and _storable(o.error.message)),
                )
                for o in outcomes
            ]
            columns = (list(column) for column in zip(*each, strict=True))
            rows = await self._fetch("finish", worker_id, _RUNNING, ids, attempts, *columns)
        return {r[0] for r in rows}

    async def delay(
        self,
        worker_id: UUID,
        jobs: Sequence[ClaimedJob],
        error: JobError,
        *,
        longest_seconds: float,
        give_up_seconds: float,
    ) -> set[UUID]:
        """Lets claimed jobs wait for what is away, longer each time; returns those that failed in the end."""
        rows = await self._fetch(
            "delay",
            worker_id,
            _RUNNING,
            *_fence(jobs),
            longest_seconds,
            _jitter(),
            give_up_seconds,
            error.code,
            _storable(error.message),
        )
        return {r["id"] for r in rows if r["status"] == JobStatus.FAILED}

    async def retry(self, worker_id: UUID, jobs: Sequence[ClaimedJob], *, longest_seconds: float) -> None:
        """Puts failed jobs back, each to be tried again after a pause that doubles with its failures."""
        await self._fetch("retry", worker_id, _RUNNING, *_fence(jobs), longest_seconds, _jitter())

    async def give_back(
        self, worker_id: UUID, jobs: Sequence[ClaimedJob], page_id: UUID, queue: str | None = None
    ) -> set[UUID]:
        """Puts claimed jobs of one model and queue back at once, in another queue or their own.

        They are on a page that the caller must publish.
        """
        return {r["id"] for r in await self._fetch("give_back", worker_id, _RUNNING, *_fence(jobs), page_id, queue)}

    async def crash(
        self, worker_id: UUID, jobs: Sequence[ClaimedJob], pages: Sequence[UUID], how: str
    ) -> dict[UUID, Crashed]:
        """Notes that jobs cost a process; returns what became of those that were this worker's."""
        rows = await self._fetch("crash", worker_id, _RUNNING, *_fence(jobs), list(pages), how)
        return {r["id"]: _crashed(r, r["page_id"]) for r in rows}

    async def withdrawn(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those that were cancelled with `terminate`."""
        return {r["id"] for r in await self._fetch("withdrawn", list(ids))}

    # Asking.

    async def get(self, job_id: UUID) -> Job:
        """Raises UnknownJob."""
        found = await self.get_many([job_id])
        if job_id not in found:
            raise UnknownJob(f"there is no job {job_id}")
        return found[job_id]

    async def get_many(self, ids: Sequence[UUID]) -> dict[UUID, Job]:
        """The jobs that exist among these."""
        return {r["id"]: _job(r) for r in await self._fetch("get_jobs", list(ids))}

    async def list_jobs(
        self,
        *,
        status: JobStatus | None = None,
        model_uri: str | None = None,
        batch_id: UUID | None = None,
        before: UUID | None = None,
        limit: int = 50,
        tenant_id: int | None = None,
    ) -> list[Job]:
        """Newest first; `before` is the id of the last job of the page before. `tenant_id` None: of all tenants."""
        rows = await self._fetch("list_jobs", status and str(status), model_uri, batch_id, before, limit, tenant_id)
        return [_job(r) for r in rows]

    async def final_among(self, ids: Sequence[UUID]) -> set[UUID]:
        return {r["id"] for r in await self._fetch("final_among", list(ids))}

    async def results(self, ids: Sequence[UUID]) -> dict[UUID, StoredResult]:
        """How the jobs among these that exist ended, or how they are now."""
        return {r["id"]: stored_of(r) for r in await self._fetch("get_results", list(ids))}

    async def ended(self, ids: Sequence[UUID]) -> dict[UUID, tuple[Job, StoredResult]]:
        """The jobs that exist among these, with their results."""
        found = {}
        for row in await self._fetch("get_ended", list(ids)):
            fields = dict(row)
            for name in ("result_format", "result"):
                del fields[name]
            found[row["id"]] = (_job(fields), stored_of(row))
        return found

    async def input(self, job_id: UUID) -> tuple[str, bytes, bytes | None]:
        """(format, payload, params) as stored. Raises UnknownJob."""
        row = await self._fetchrow("get_input", job_id)
        if row is None:
            raise UnknownJob(f"there is no job {job_id}")
        return row["input_format"], row["input"], row["params"]

    async def queue_depth(self) -> list[dict[str, Any]]:
        """Queued jobs by model and queue: model_uri, queue, jobs, oldest (a time)."""
        return [dict(r) for r in await self._fetch("queue_depth")]

    async def clock(self) -> datetime:
        """Postgres' own time."""
        with ledger_errors():
            now: datetime = await self._pool.fetchval("SELECT clock_timestamp()")
            return now

    # Rescue.

    async def beat(self, worker_id: UUID, hostname: str, pid: int, process_start: str | None = None) -> None:
        """`process_start`: what tells the process from another with its pid; see `processes_of_host`."""
        await self._execute("beat_heart", worker_id, hostname, pid, process_start)

    async def processes_of_host(self, hostname: str) -> list[tuple[UUID, int, str]]:
        """(worker id, pid, process start) of a host's processes that have not said that they ended."""
        rows = await self._fetch("processes_of_host", hostname)
        return [(r["id"], r["pid"], r["process_start"]) for r in rows]

    async def begin_upkeep(self, name: str, *, at_most_every_seconds: float) -> bool:
        """Whether it is this process's turn: nobody else began this upkeep lately."""
        return await self._fetchrow("begin_upkeep", name, at_most_every_seconds) is not None

    async def upkeep_due(self, name: str, *, at_most_every_seconds: float) -> float:
        """In how many seconds `begin_upkeep` would succeed if nobody else began this."""
        row = await self._fetchrow("upkeep_due", name, at_most_every_seconds)
        return 0.0 if row is None else float(row["seconds"])

    async def stop_beating(self, worker_id: UUID) -> None:
        await self._execute("stop_heart", worker_id)

    async def live_workers(self, stale_seconds: float) -> list[dict[str, Any]]:
        """Worker processes that beat lately: hostname, pid, started_at, seen_at."""
        return [dict(r) for r in await self._fetch("live_workers", stale_seconds)]

    async def rescue_crashed(self, stale_seconds: float) -> dict[UUID, Crashed]:
        """Puts back (or declares dead) the jobs of processes that are gone."""
        return {r["id"]: _crashed(r, r["id"]) for r in await self._fetch("rescue_crashed", stale_seconds)}

    async def expire(self) -> list[UUID]:
        return [r["id"] for r in await self._fetch("expire")]

    async def pages_without_message(self, older_than: Mapping[str, UUID], *, first: bool = False) -> list[UUID]:
        """Up to 1,000 pages of queues that are older than this and whose jobs are due.

        With a queue's oldest message: those without one. `first`: of jobs that go before the lane, else of the others.
        """
        queues, boundaries = list(older_than), list(older_than.values())
        return [r["page_id"] for r in await self._fetch("pages_without_message", queues, boundaries, first)]

    async def due_pages(self) -> list[UUID]:
        """Pages with jobs that had to wait and are due now, of at most 10,000 such jobs."""
        return [r["page_id"] for r in await self._fetch("due_pages")]

    async def repage(self, old: Sequence[UUID], new: Sequence[UUID]) -> list[Page]:
        """Moves the queued jobs of pages to new pages, which the caller must publish.

        Jobs in a queue of a model's own go where the model's jobs wait now.
        """
        return [Page(**r) for r in await self._fetch("repage", list(old), list(new))]


async def _nothing_to_reset(_: Any) -> None:
    """No statement here changes its session; to reset that would be another round trip for each use of a connection."""


async def _close(pool: asyncpg.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), timeout=5)
    except TimeoutError:
        pool.terminate()


def _keys(rows: Sequence[asyncpg.Record]) -> Keys:
    return {row["key"]: (row["digest"], row["job_id"]) for row in rows}


def _crashed(row: asyncpg.Record, page_id: UUID) -> Crashed:
    return Crashed(status=JobStatus(row["status"]), crashes=row["crashes"], page_id=page_id)


def _place(placed: tuple[UUID, NewJob]) -> tuple[str, int]:
    """One order of chunks everywhere: so two producers of the same batch never wait for each other."""
    _, job = placed
    return str(job.batch_id or ""), job.batch_index or 0


def _fence(jobs: Sequence[ClaimedJob]) -> tuple[list[UUID], list[int]]:
    return [job.id for job in jobs], [job.attempt for job in jobs]


def _jitter() -> float:
    return random.uniform(0.5, 1.0)  # noqa: S311


def _storable(text: str) -> str:
    """What a model or an input says of itself can hold what Postgres keeps in no text."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()


def _real_array(values: Sequence[float] | None) -> str | None:
    # unnest() flattens nested arrays, so a job's scores travel as the text of an array.
    return None if values is None else "{" + ",".join(map(repr, values)) + "}"


def _job(row: Mapping[str, Any]) -> Job:
    fields = dict(row)
    fields["metadata"] = None if fields["metadata"] is None else orjson.loads(fields["metadata"])
    code, message = fields.pop("error_code"), fields.pop("error_message")
    fields["status"] = STATUSES[fields["status"]]
    fields["lane"] = lane_of(fields.pop("queue"))
    fields["error"] = None if code is None else JobError(code=code, message=message)
    return job_of(**fields)
