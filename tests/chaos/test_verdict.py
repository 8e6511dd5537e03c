"""The verdict finds what it is there to find: each kind of violation, put into a ledger by hand."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from pyfunq.entries import NewJob
from pyfunq.errors import LedgerUnavailable
from pyfunq.ids import new_id
from pyfunq.inputs import encode_input
from pyfunq.job import Lane
from pyfunq.ledger import Ledger
from tests.chaos.host import span_of
from tests.chaos.load import Record
from tests.chaos.models import answer, uri_of
from tests.chaos.verdict import RESCUE_LIMIT_SECONDS, Blow, Verdict, install, judge

PID = 4711


class Bench:
    """A ledger and a producer's record that can be made to disagree."""

    def __init__(self, ledger: Ledger, url: str, record: Record, records: Path, worker: UUID) -> None:
        self.ledger, self.url, self.record, self.records, self.worker = ledger, url, record, records, worker

    async def submit(self, kind: str = "single") -> tuple[UUID, float, float]:
        """The id of a job in the ledger, its number, and the key of its record."""
        (x,) = self.record.tokens(1)
        key = self.record.tried(kind, [[x]])
        payload = encode_input({"dataframe_split": {"columns": ["x"], "data": [[x]]}}, signature=None, max_bytes=1000)
        job = NewJob(id=new_id(), model_uri=uri_of("alpha"), input=payload, queue=Lane.INTERACTIVE, max_attempts=3)
        await self.ledger.submit([(job.id, job)])
        return job.id, x, key

    async def accepted(self, kind: str = "single") -> tuple[UUID, float]:
        job_id, x, key = await self.submit(kind)
        self.record.accepted(key, [str(job_id)])
        return job_id, x

    async def execute(self, query: str, *args: Any) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(query, *args)
        await connection.close()

    async def run(self, job_id: UUID) -> None:
        await self.execute("UPDATE job SET status='running', attempt=1, worker_id=$2 WHERE id=$1", job_id, self.worker)

    async def succeed(self, job_id: UUID, value: float) -> None:
        await self.execute(
            "UPDATE job SET status='succeeded', version_id=1, finished_at=now(), result_format='json', result=$2"
            " WHERE id=$1",
            job_id,
            f"[{value}]".encode(),
        )

    async def good(self) -> UUID:
        job_id, x = await self.accepted()
        await self.run(job_id)
        await self.succeed(job_id, answer("alpha", 1, x))
        return job_id

    async def judge(self, *blows: Blow, outages: Sequence[tuple[float, float]] = (), **options: float) -> Verdict:
        return await judge(self.url, self.records, blows, outages, **options)


@pytest.fixture
async def bench(ledger: Ledger, database_url: str, tmp_path: Path) -> Bench:
    await install(database_url)
    worker = new_id()
    await ledger.beat(worker, "here", PID)
    made = Bench(ledger, database_url, Record(tmp_path / "1.jsonl", 0), tmp_path, worker)
    await made.execute("INSERT INTO model_version (name, version, created_ms, source) VALUES ('alpha', '1', 1, 's')")
    return made


async def test_what_is_in_order_passes(bench: Bench) -> None:
    await bench.good()
    poison, _ = await bench.accepted("poison")
    await bench.execute("UPDATE job SET status='dead', attempt=3, crashes=3, finished_at=now() WHERE id=$1", poison)
    await bench.submit()  # cut off: nobody was told
    await bench.execute("DELETE FROM job_input USING job WHERE job.id = job_input.id AND status='queued'")
    await bench.execute("DELETE FROM job WHERE status='queued'")
    await bench.execute("DELETE FROM chaos_rewritten")
    verdict = await bench.judge()
    assert verdict.clean, verdict.violations
    assert verdict.told == {"accepted": 2, "cut off": 1}


async def test_each_violation_is_found(bench: Bench) -> None:
    gone, _ = await bench.accepted()
    await bench.execute("DELETE FROM job WHERE id=$1", gone)
    open_, _ = await bench.accepted()
    wrong, x = await bench.accepted()
    await bench.succeed(wrong, answer("alpha", 2, x))
    failed, _ = await bench.accepted()
    await bench.execute("UPDATE job SET status='failed', finished_at=now() WHERE id=$1", failed)
    again = await bench.good()
    await bench.execute("UPDATE job SET finished_at=now() WHERE id=$1", again)
    emptied, _ = await bench.accepted()
    await bench.execute("DELETE FROM job_input WHERE id=$1", emptied)
    refused, _, key = await bench.submit()
    unavailable = LedgerUnavailable()
    unavailable.__cause__ = ConnectionRefusedError()
    bench.record.raised(key, unavailable)
    await bench.succeed(refused, answer("alpha", 1, key))
    bench.record.raised(bench.record.tried("single", [bench.record.tokens(1)]), ValueError())
    verdict = await bench.judge()
    found = {kind: {job_id for job_id, _ in of} for kind, of in verdict.violations.items()}
    assert found == {
        "lost": {gone, open_, emptied},
        "wrong": {wrong},
        "illegal": {failed},
        "doubled": {gone, again},
        "torn": {gone, emptied},
        "unexpected": {refused},
        "raised": {None},
    }


async def test_who_waited_for_the_host_of_the_machine_is_not_late(bench: Bench) -> None:
    job_id, x = await bench.accepted()
    await bench.run(job_id)
    begun = time.time()
    blow = Blow("kill -9 of a child", begun, [PID])
    await bench.succeed(job_id, answer("alpha", 1, x))
    await bench.execute("UPDATE chaos_history SET at = at + $1 * interval '1 s' WHERE status='succeeded'", 41.0)
    half = [span_of(begun + n, begun + n + 1, 0.5) for n in range(41)]
    verdict = await bench.judge(blow, outages=half)
    assert verdict.clean
    assert 20 <= verdict.rescues["kill -9 of a child"][0] <= 21
    assert not (await bench.judge(blow, outages=half[:15])).clean


async def test_a_late_rescue_is_found(bench: Bench) -> None:
    job_id, x = await bench.accepted()
    await bench.run(job_id)
    blow = Blow("kill -9 of a child", time.time(), [PID])
    await bench.succeed(job_id, answer("alpha", 1, x))
    assert (await bench.judge(blow)).clean
    await bench.execute("UPDATE chaos_history SET at = at + $1 * interval '1 s' WHERE status='succeeded'", 31.0)
    verdict = await bench.judge(blow)
    assert verdict.rescues["kill -9 of a child"][0] > RESCUE_LIMIT_SECONDS
    assert [job_id] == [found for found, _ in verdict.violations["late"]]
    assert (await bench.judge(blow, late_seconds=35.0)).clean
