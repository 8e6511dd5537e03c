"""The verdict: what the producers were told, against what the ledger holds, and how long rescue took."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pyarrow as pa

from pyfunq.job import JobStatus
from pyfunq.results import decode_result
from tests.chaos.models import answer

RESCUE_LIMIT_SECONDS = 30.0
SHOWN = 5

_WITNESS = """
CREATE TABLE chaos_history (
    seq bigserial PRIMARY KEY, job_id uuid NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    was text NOT NULL, status text NOT NULL, attempt integer NOT NULL, worker_id uuid
);
CREATE TABLE chaos_rewritten (
    job_id uuid NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), was text NOT NULL, status text NOT NULL
);
CREATE FUNCTION chaos_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos_rewritten (job_id, was, status) VALUES (OLD.id, OLD.status, 'deleted');
    ELSIF OLD.status NOT IN ('queued', 'running') THEN
        INSERT INTO chaos_rewritten (job_id, was, status) VALUES (OLD.id, OLD.status, NEW.status);
    ELSIF OLD.status <> NEW.status OR OLD.attempt <> NEW.attempt THEN
        INSERT INTO chaos_history (job_id, was, status, attempt, worker_id)
        VALUES (NEW.id, OLD.status, NEW.status, NEW.attempt, NEW.worker_id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_witness AFTER UPDATE OR DELETE ON job FOR EACH ROW EXECUTE FUNCTION chaos_witness();
"""

_JOBS = """
SELECT j.id, j.batch_id, j.batch_index, j.model_uri, j.status, j.attempt, j.crashes, j.max_attempts, j.rows,
       j.created_at, j.finished_at, j.input_format, i.input, j.result_format, j.result, j.error_code, j.error_message,
       v.name AS model, v.version
FROM job j JOIN job_input i ON i.id = j.id LEFT JOIN model_version v ON v.id = j.version_id
"""
_HALVES = """
SELECT id, CASE WHEN job_input.id IS NULL THEN 'a job without its input' ELSE 'an input without its job' END AS what
FROM job FULL JOIN job_input USING (id) WHERE job.id IS NULL OR job_input.id IS NULL
"""

Times = tuple[float, float, float]
Span = tuple[float, float]
"""From and to, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Blow:
    """Processes that were killed or stopped, and when (seconds since the epoch)."""

    kind: str
    at: float
    pids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Submitted:
    """One job as its producer knows it; `id` is None unless it was told.

    `told` is accepted, refused, "in doubt" (the connection broke) or "cut off" (the producer was killed).
    """

    xs: tuple[float, ...]
    kind: str
    told: str
    id: UUID | None = None
    batch_id: UUID | None = None


@dataclass(slots=True)
class Verdict:
    """Violations by kind, each with the job's id (or None) and what is wrong; and what was counted."""

    violations: dict[str, list[tuple[UUID | None, str]]] = field(default_factory=lambda: defaultdict(list))
    told: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    committed: Counter[str] = field(default_factory=Counter)
    """What is in the ledger of that which its producer does not know about, by what that was told."""
    fenced: int = 0
    rescues: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By kind of blow, the seconds to a job's next claim or end, without those in which Redis or Postgres was away, or
    the host of a virtual machine took its cores."""
    totals: list[float] = field(default_factory=list)
    histories: dict[UUID, list[str]] = field(default_factory=dict)

    def against(self, kind: str, job_id: UUID | None, what: str) -> None:
        self.violations[kind].append((job_id, what))

    @property
    def clean(self) -> bool:
        return not any(self.violations.values())


async def install(database_url: str) -> None:
    """Lets the database note every change of a job's status, and every change of what was final."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_WITNESS)
    finally:
        await connection.close()


async def judge(
    database_url: str,
    records: Path,
    blows: Sequence[Blow],
    outages: Sequence[Span],
    *,
    late_seconds: float = RESCUE_LIMIT_SECONDS,
) -> Verdict:
    """Reads what the producers wrote in `records` and what the ledger holds."""
    verdict = Verdict()
    submitted = _read(records, verdict)
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(_JOBS)
        halves = await connection.fetch(_HALVES)
        history = await connection.fetch("SELECT * FROM chaos_history ORDER BY job_id, seq")
        rewritten = await connection.fetch("SELECT * FROM chaos_rewritten")
        workers = await connection.fetch("SELECT id, pid FROM worker")
    finally:
        await connection.close()
    verdict.statuses.update(row["status"] for row in rows)
    _compare(verdict, submitted, rows)
    for half in halves:
        verdict.against("torn", half["id"], half["what"])
    for row in rewritten:
        verdict.against("doubled", row["job_id"], f"was {row['was']} and was written again as {row['status']}")
    moves: dict[UUID, list[asyncpg.Record]] = defaultdict(list)
    for move in history:
        moves[move["job_id"]].append(move)
    _measure(verdict, moves, {w["id"]: w["pid"] for w in workers}, blows, outages, late_seconds)
    _tell_histories(verdict, moves)
    return verdict


def _read(records: Path, verdict: Verdict) -> list[Submitted]:
    submitted: list[Submitted] = []
    for path in sorted(records.glob("*.jsonl")):
        tried: dict[float, dict[str, Any]] = {}
        ends: dict[float, tuple[str, list[str]]] = {}
        for line in map(json.loads, path.read_text().splitlines()):
            if "tried" in line:
                tried[line["tried"]] = line
                continue
            told = next(word for word in ("accepted", "refused", "in doubt") if word in line)
            ends[line[told]] = (told, line.get("ids", []))
            if told != "accepted":
                verdict.causes[line["cause"]] += 1
                if not line["expected"]:
                    verdict.against("raised", None, f"submit raised {line['cause']}")
        for key, line in tried.items():
            submitted.extend(_jobs_of(line, *ends.get(key, ("cut off", []))))
    verdict.told.update(one.told for one in submitted)
    return submitted


def _jobs_of(line: dict[str, Any], told: str, ids: list[str]) -> Iterable[Submitted]:
    for index, xs in enumerate(line["jobs"]):
        if told != "accepted":
            yield Submitted(tuple(xs), line["kind"], told)
        elif line["kind"] == "batch":
            yield Submitted(tuple(xs), "batch", told, batch_id=UUID(ids[0]))
        else:
            yield Submitted(tuple(xs), line["kind"], told, id=UUID(ids[index]))


def _compare(verdict: Verdict, submitted: list[Submitted], rows: list[asyncpg.Record]) -> None:
    by_first: dict[float, list[tuple[asyncpg.Record, tuple[float, ...]]]] = defaultdict(list)
    for row in rows:
        xs = _inputs(row["input_format"], row["input"])
        by_first[xs[0]].append((row, xs))
    for one in submitted:
        found = by_first.pop(one.xs[0], [])
        if found:
            _check_found(verdict, one, *found[0])
        elif one.told == "accepted":
            verdict.against("lost", one.id, f"accepted {one.kind}, not in the ledger")
        for row, _ in found[1:]:
            verdict.against("doubled", row["id"], f"{len(found)} jobs of one {one.kind}")
    for left in by_first.values():
        for row, _ in left:
            verdict.against("unexpected", row["id"], "nobody submitted it")


def _check_found(verdict: Verdict, one: Submitted, row: asyncpg.Record, xs: tuple[float, ...]) -> None:
    if one.told == "refused":
        verdict.against("unexpected", row["id"], f"this {one.kind} was refused")
    elif one.told != "accepted":
        verdict.committed[one.told] += 1
    if xs != one.xs or (one.id or row["id"]) != row["id"] or (one.batch_id or row["batch_id"]) != row["batch_id"]:
        verdict.against("unexpected", row["id"], f"not as its {one.kind} was submitted")
    _check_end(verdict, one, row)


def _check_end(verdict: Verdict, one: Submitted, row: asyncpg.Record) -> None:
    status, used_up = JobStatus(row["status"]), row["crashes"] >= row["max_attempts"]
    verdict.attempts[row["attempt"]] += 1
    said = f"{one.kind} is {status} after {row['attempt']} claims and {row['crashes']} of {row['max_attempts']} crashes"
    said += f" ({row['error_code']}: {row['error_message']})" if row["error_code"] else ""
    if not status.is_final:
        verdict.against("lost", row["id"], f"not final: {said}")
        return
    verdict.totals.append((row["finished_at"] - row["created_at"]).total_seconds())
    stopped_batch = one.kind == "batch" and one.told != "accepted" and status is JobStatus.CANCELLED
    if one.kind == "poison":
        legal = status is JobStatus.DEAD and row["crashes"] == row["max_attempts"]
    else:
        legal = status is JobStatus.SUCCEEDED or (status is JobStatus.DEAD and used_up) or stopped_batch
    if not legal:
        verdict.against("illegal", row["id"], said)
    if status is JobStatus.SUCCEEDED and one.kind != "poison":
        expected = [answer(row["model"], int(row["version"]), x) for x in one.xs]
        got = [float(value) for value in decode_result(row["result_format"], row["result"])]
        if got != expected or row["model_uri"] != f"models:/{row['model']}@champion":
            verdict.against("wrong", row["id"], f"{one.kind}: not what version {row['version']} answers")


def _inputs(form: str, payload: bytes) -> tuple[float, ...]:
    if form == "arrow":
        return tuple(pa.ipc.open_stream(payload).read_all().column("x").to_pylist())
    return tuple(row[0] for row in orjson.loads(payload)["data"])


def _measure(
    verdict: Verdict,
    moves: dict[UUID, list[asyncpg.Record]],
    pids: dict[UUID, int],
    blows: Sequence[Blow],
    outages: Sequence[Span],
    late_seconds: float,
) -> None:
    """From each kill or stop of a process to what next became of the jobs that it was running."""
    for job_id, steps in moves.items():
        for move, after in pairwise(steps):
            if move["status"] != JobStatus.RUNNING or move["worker_id"] not in pids:
                continue
            pid, begun, over = pids[move["worker_id"]], move["at"].timestamp(), after["at"].timestamp()
            blow = next((b for b in blows if pid in b.pids and begun <= b.at < over), None)
            ended = _taken_again(steps, move)
            if blow is not None and ended is not None:
                seconds = ended - blow.at - _overlap((blow.at, ended), outages)
                verdict.rescues[blow.kind].append(seconds)
                if seconds > late_seconds:
                    verdict.against("late", job_id, f"rescued after {seconds:.1f} s: {blow.kind}")


def _overlap(span: Span, others: Sequence[Span]) -> float:
    """Seconds of the span that lie in any of the others."""
    total, reached = 0.0, span[0]
    for begun, ended in sorted(others):
        begun, ended = max(begun, reached), min(ended, span[1])
        if ended > begun:
            total, reached = total + ended - begun, ended
    return total


def count_fenced(logs: Path) -> int:
    """Results that workers brought too late, by their logs."""
    found = (re.findall(r"(\d+) results were not kept", path.read_text()) for path in logs.glob("worker*.log"))
    return sum(int(n) for numbers in found for n in numbers)


def _taken_again(steps: list[asyncpg.Record], since: asyncpg.Record) -> float | None:
    """When the job was next claimed or final."""
    for step in steps:
        if step["seq"] > since["seq"] and step["status"] != JobStatus.QUEUED:
            at: float = step["at"].timestamp()
            return at
    return None


def _tell_histories(verdict: Verdict, moves: dict[UUID, list[asyncpg.Record]]) -> None:
    for violations in verdict.violations.values():
        for job_id, _ in violations[:SHOWN]:
            if job_id is not None:
                verdict.histories[job_id] = [
                    f"{m['at']:%H:%M:%S.%f} {m['was']} -> {m['status']} attempt {m['attempt']} by {m['worker_id']}"
                    for m in moves.get(job_id, [])
                ]


def quantiles(seconds: Sequence[float]) -> Times:
    """p50, p99 and the largest; zeros where there is nothing."""
    if not seconds:
        return 0.0, 0.0, 0.0
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], ordered[-1]
