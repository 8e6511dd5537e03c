"""The ledger as a state machine: whatever happens in whatever order, each accepted job ends once and as it should."""

import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyfunq.entries import ClaimedJob, NewJob, Outcome
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import TRANSITIONS, JobError, JobStatus, Lane
from pyfunq.ledger import Ledger

# Hours pass when the test says so: the ledger's now() is found in this schema before PostgreSQL's own.
CLOCK = """
CREATE SCHEMA clock;
CREATE TABLE clock.passed AS SELECT 0 AS hours;
CREATE FUNCTION clock.now() RETURNS timestamptz STABLE LANGUAGE sql
    AS 'SELECT pg_catalog.now() + make_interval(hours => hours) FROM clock.passed';
CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
    AS 'SELECT pg_catalog.clock_timestamp() + make_interval(hours => hours) FROM clock.passed';
ALTER TABLE worker ALTER COLUMN seen_at SET DEFAULT clock.now();
"""
HALF_AN_HOUR = timedelta(minutes=30)
STALE_SECONDS = 60.0
MOST_JOBS = 40
WIDE_CAPS = {"max_jobs": 3, "max_rows": 100, "max_bytes": 1000}

_WITH_ERROR = {JobStatus.FAILED, JobStatus.EXPIRED, JobStatus.DEAD}
# Mostly one kind: company on the way is where claims can go wrong.
_KINDS = st.sampled_from(
    [("models:/a/1", Lane.BULK)] * 2 + [("models:/a/1", Lane.INTERACTIVE), ("models:/b/1", Lane.BULK)]
)
# Rows, bytes, max_attempts, and the deadline: none, half an hour away or half an hour ago.
_JOBS = st.tuples(
    st.integers(1, 5), st.integers(1, 40), st.sampled_from([3, 2, 1]), st.sampled_from([None, None, None, None, +1, -1])
)
_SUBMISSIONS = st.lists(st.tuples(_KINDS, st.lists(_JOBS, min_size=1, max_size=4)), min_size=1, max_size=2)
_CAPS = st.fixed_dictionaries(
    {
        "max_jobs": st.sampled_from([6, 3, 1]),
        "max_rows": st.sampled_from([100, 8, 1]),
        "max_bytes": st.sampled_from([1000, 60, 1]),
    }
)
_ENDS = st.lists(st.sampled_from([JobStatus.SUCCEEDED, JobStatus.FAILED, None]), min_size=1, max_size=3)
_SLOTS = st.integers(0, 2)


@dataclass(frozen=True)
class World:
    """What the runs share: one event loop, one ledger, and a connection that sets the stage and reads rows."""

    runner: asyncio.Runner
    ledger: Ledger
    stage: asyncpg.Connection


@dataclass(frozen=True)
class Held:
    """What one claim gave to a worker, who may believe in it long after it was taken away."""

    worker: UUID
    jobs: tuple[ClaimedJob, ...]


@dataclass(slots=True)
class Expected:
    """What the ledger must say of an accepted job. Hours are those that have passed."""

    job: NewJob
    page: UUID
    expires_in_hour: int | None
    due_in_hour: int = 0
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    crashes: int = 0
    failures: int = 0
    holder: UUID | None = None
    result: bytes | None = None
    error: JobError | None = None
    recorded: int = 0

    def due(self, hour: int) -> bool:
        return self.status is JobStatus.QUEUED and hour >= self.due_in_hour

    def past_deadline(self, hour: int) -> bool:
        return self.expires_in_hour is not None and hour >= self.expires_in_hour

    def claimable(self, hour: int) -> bool:
        return self.due(hour) and not self.past_deadline(hour)

    def is_held_by(self, worker: UUID, claimed: ClaimedJob) -> bool:
        return (self.status, self.attempt, self.holder) == (JobStatus.RUNNING, claimed.attempt, worker)


class LedgerMachine(RuleBasedStateMachine):
    """Three workers, two models, two lanes. Workers crash, hang, answer late and answer for each other."""

    pages: Bundle[UUID] = Bundle("pages")
    held: Bundle[Held] = Bundle("held")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.ledger = world.ledger
        self.hour = 0
        self.expected: dict[UUID, Expected] = {}
        self.before: dict[UUID, dict[str, Any]] = {}
        self.numbers = count(1)
        self.seen_in_hour: dict[UUID, int] = {}
        self.workers = [new_id() for _ in range(3)]
        self.call(world.stage.execute("TRUNCATE job, job_input, worker; UPDATE clock.passed SET hours = 0"))
        for slot in range(3):
            self.beat(slot)

    def call(self, awaitable: Coroutine[Any, Any, Any]) -> Any:
        return self.world.runner.run(awaitable)

    # What clients do.

    @initialize(target=pages, submission=_SUBMISSIONS)
    def submit_first(self, submission: list[Any]) -> Any:
        return self.submit(submission)

    @precondition(lambda self: len(self.expected) < MOST_JOBS)
    @rule(target=pages, submission=_SUBMISSIONS)
    def submit(self, submission: list[Any]) -> Any:
        now, batch_id, accepted = self.call(self.ledger.clock()), new_id(), []
        for (model_uri, lane), wishes in submission:
            page = new_id()
            for rows, size, max_attempts, deadline in wishes:
                job = NewJob(
                    id=new_id(),
                    model_uri=model_uri,
                    queue=lane,
                    input=EncodedInput(format="split", payload=b"x" * size, params=None, rows=rows),
                    max_attempts=max_attempts,
                    expires_at=None if deadline is None else now + deadline * HALF_AN_HOUR,
                    batch_id=batch_id,
                )
                expires = None if deadline is None else self.hour + max(0, deadline)
                accepted.append(Expected(job, page, expires))
        self.call(self.ledger.submit([(e.page, e.job) for e in accepted]))
        self.expected |= {e.job.id: e for e in accepted}
        return multiple(*dict.fromkeys(e.page for e in accepted))

    @precondition(lambda self: self.expected)
    @rule(picks=st.lists(st.integers(0, MOST_JOBS), min_size=1, max_size=3))
    def cancel(self, picks: list[int]) -> None:
        ids = list({self.pick(list(self.expected), n) for n in picks})
        self.were_cancelled(ids, self.call(self.ledger.cancel(ids)))

    @precondition(lambda self: self.expected)
    @rule(n=st.integers(0, MOST_JOBS))
    def cancel_batch(self, n: int) -> None:
        batch_id = self.pick(list(self.expected.values()), n).job.batch_id
        ids = [i for i, e in self.expected.items() if e.job.batch_id == batch_id]
        self.were_cancelled(ids, self.call(self.ledger.cancel_batch(batch_id)))

    def were_cancelled(self, ids: list[UUID], cancelled: list[UUID]) -> None:
        open_ones = {i for i in ids if not self.expected[i].status.is_final}
        assert Counter(cancelled) == Counter(open_ones)
        for i in open_ones:
            self.expected[i].status = JobStatus.CANCELLED

    # What workers do.

    @rule(target=held, page=pages, slot=_SLOTS, caps=_CAPS)
    def message_arrives(self, page: UUID, slot: int, caps: dict[str, int]) -> Any:
        """Any message, also one that was delivered before or whose jobs have moved or ended."""
        return self.claim(page, slot, caps)

    @precondition(lambda self: self.claimable_pages())
    @rule(target=held, n=st.integers(0, MOST_JOBS), slot=_SLOTS, caps=_CAPS)
    def message_with_work_arrives(self, n: int, slot: int, caps: dict[str, int]) -> Any:
        return self.claim(self.pick(self.claimable_pages(), n), slot, caps)

    def claim(self, page: UUID, slot: int, caps: dict[str, int]) -> Any:
        worker = self.workers[slot]
        claimed = self.call(self.ledger.claim(page, worker, **caps))
        self.was_rightly_claimed(page, [self.expected[c.id] for c in claimed], caps)
        for c in claimed:
            e = self.expected[c.id]
            e.status, e.attempt, e.holder = JobStatus.RUNNING, e.attempt + 1, worker
            assert (c.attempt, c.crashes, c.failures) == (e.attempt, e.crashes, e.failures)
            assert c.input == e.job.input.payload
        return multiple(Held(worker, tuple(claimed))) if claimed else multiple()

    def was_rightly_claimed(self, page: UUID, taken: list[Expected], caps: dict[str, int]) -> None:
        own = [e for e in self.expected.values() if e.page == page and e.claimable(self.hour)]
        own_taken = [e for e in taken if e.page == page]
        along = [e for e in taken if e.page != page]
        assert all(e.claimable(self.hour) for e in taken), "taken although it is not waiting"
        assert len({(e.job.model_uri, e.job.queue) for e in taken}) <= 1
        assert not any(e.crashes for e in taken) or len(taken) == 1, "its process died, and yet in company"
        assert bool(taken) == bool(own)
        assert own_taken == own[: len(own_taken)], "the page's own jobs come first, in order"
        *first, _ = [*own_taken, *along] or [None]
        rows, size = (
            (lambda es: sum(e.job.input.rows for e in es)),
            (lambda es: sum(len(e.job.input.payload) for e in es)),
        )
        assert len(taken) <= caps["max_jobs"]
        assert rows(first) < caps["max_rows"]
        assert size(first) < caps["max_bytes"]
        full = len(taken) == caps["max_jobs"] or rows(taken) >= caps["max_rows"] or size(taken) >= caps["max_bytes"]
        assert full or own_taken == own, "left behind although there was room"

    @rule(held=held, ends=_ENDS)
    def finish(self, held: Held, ends: list[JobStatus | None]) -> None:
        """By the worker that claimed: in time, too late, in parts or again."""
        self.outcomes_arrive(held.worker, held, ends)

    @rule(held=held, ends=_ENDS, slot=_SLOTS)
    def finish_by_anyone(self, held: Held, ends: list[JobStatus | None], slot: int) -> None:
        self.outcomes_arrive(self.workers[slot], held, ends)

    def outcomes_arrive(self, worker: UUID, held: Held, ends: list[JobStatus | None]) -> None:
        outcomes = [
            self.outcome(job, end)
            for job, end in zip(held.jobs, ends * len(held.jobs), strict=False)
            if end is not None
        ]
        if not outcomes:
            return
        mine = [o for o in outcomes if self.expected[o.job.id].is_held_by(worker, o.job)]
        assert self.call(self.ledger.finish(worker, outcomes)) == {o.job.id for o in mine}
        for o in mine:
            e = self.expected[o.job.id]
            e.status, e.result, e.error, e.recorded = o.status, o.result, o.error, e.recorded + 1

    def outcome(self, job: ClaimedJob, end: JobStatus) -> Outcome:
        """No two alike, so that the rows tell which one was recorded."""
        n = next(self.numbers)
        if end is JobStatus.FAILED:
            return Outcome(job=job, status=end, error=JobError(code="model_raised", message=f"outcome {n}"))
        return Outcome(job=job, status=end, result_format="json", result=b"[%d]" % n)

    @rule(
        target=held,
        held=held,
        how=st.sampled_from(["delay", "retry", "give back", "crash"]),
        by=st.none() | _SLOTS,
        message_for=st.none() | _SLOTS,
    )
    def set_back(self, held: Held, how: str, by: int | None, message_for: int | None) -> Any:
        """By the worker that claimed, or by another that has no say in it; the page's message may come at once."""
        self.put_back(held.worker if by is None else self.workers[by], held, how)
        self.the_ledger_is_as_expected()
        if message_for is None:
            return multiple()
        return self.claim(self.expected[held.jobs[0].id].page, message_for, WIDE_CAPS)

    def put_back(self, worker: UUID, held: Held, how: str) -> None:
        mine = [self.expected[c.id] for c in held.jobs if self.expected[c.id].is_held_by(worker, c)]
        page, pages = new_id(), [new_id() for _ in held.jobs]
        match how:
            case "delay":
                why = JobError(code="registry_unavailable", message="away")
                limits = {"longest_seconds": 1.0, "give_up_seconds": 1e9}
                assert self.call(self.ledger.delay(worker, held.jobs, why, **limits)) == set()
            case "retry":
                self.call(self.ledger.retry(worker, held.jobs, longest_seconds=1.0))
            case "give back":
                assert self.call(self.ledger.give_back(worker, held.jobs, page)) == {e.job.id for e in mine}
            case "crash":
                ends = self.call(self.ledger.crash(worker, held.jobs, pages, "hung"))
                assert set(ends) == {e.job.id for e in mine}
        for e in mine:
            e.status, e.holder = JobStatus.QUEUED, None
            if how in ("delay", "retry"):
                e.due_in_hour, e.failures = self.hour + 1, e.failures + (how == "retry")
            elif how == "give back":
                e.page, e.due_in_hour = page, 0
            else:
                self.has_crashed(e, pages[[c.id for c in held.jobs].index(e.job.id)])

    def has_crashed(self, e: Expected, page: UUID) -> None:
        e.crashes += 1
        e.status = JobStatus.DEAD if e.crashes >= e.job.max_attempts else JobStatus.QUEUED
        e.page, e.holder, e.due_in_hour = page, None, 0

    # What happens to workers.

    @rule(slot=_SLOTS, says_so=st.booleans(), successor=st.sampled_from(["beats", "is silent", "is itself"]))
    def crash(self, slot: int, says_so: bool, successor: str) -> None:
        """The process ends, with or without a word, and another takes its place; or it goes on after all."""
        if says_so:
            self.call(self.ledger.stop_beating(self.workers[slot]))
            self.seen_in_hour.pop(self.workers[slot], None)
        if successor != "is itself":
            self.workers[slot] = new_id()
        if successor != "is silent":
            self.beat(slot)
        self.rescue()

    @rule(slot=_SLOTS)
    def beat(self, slot: int) -> None:
        worker = self.workers[slot]
        self.call(self.ledger.beat(worker, "host", slot))
        self.seen_in_hour[worker] = self.hour

    @rule(beating=st.sets(_SLOTS))
    def hour_passes(self, beating: set[int]) -> None:
        """Waits end, deadlines pass, and who does not beat is silent for longer than the lease."""
        self.hour += 1
        self.call(self.world.stage.execute("UPDATE clock.passed SET hours = $1", self.hour))
        for slot in beating:
            self.beat(slot)

    # What rescue does.

    @rule(target=pages)
    def rescue(self) -> Any:
        lost = [
            e
            for e in self.expected.values()
            if e.status is JobStatus.RUNNING and self.seen_in_hour.get(e.holder) != self.hour
        ]
        for e in lost:
            self.has_crashed(e, e.job.id)
        ended = self.call(self.ledger.rescue_crashed(STALE_SECONDS))
        assert {i: (c.status, c.crashes) for i, c in ended.items()} == {e.job.id: (e.status, e.crashes) for e in lost}
        return multiple(*(e.page for e in lost))

    @precondition(lambda self: self.claimable_pages())
    @rule(
        target=held,
        n=st.integers(0, MOST_JOBS),
        slot=_SLOTS,
        next_slot=st.none() | _SLOTS,
        then=st.sampled_from(["answers", "gives back", "is quiet"]),
    )
    def hang(self, n: int, slot: int, next_slot: int | None, then: str) -> Any:
        """All workers hang for an hour; a job is rescued and claimed again before its old holder goes on."""
        (old,) = self.claim(self.pick(self.claimable_pages(), n), slot, WIDE_CAPS).values
        self.the_ledger_is_as_expected()
        self.hour_passes(set())
        self.rescue()
        self.the_ledger_is_as_expected()
        for each in range(3):
            self.beat(each)
        page = self.expected[old.jobs[0].id].page
        again = self.claim(page, slot if next_slot is None else next_slot, WIDE_CAPS)
        self.the_ledger_is_as_expected()
        if then == "answers":
            self.outcomes_arrive(old.worker, old, [JobStatus.SUCCEEDED])
        elif then == "gives back":
            self.put_back(old.worker, old, "give back")
        return multiple(old, *again.values)

    @rule()
    def expire(self) -> None:
        late = [e for e in self.expected.values() if e.status is JobStatus.QUEUED and e.past_deadline(self.hour)]
        assert Counter(self.call(self.ledger.expire())) == Counter(e.job.id for e in late)
        for e in late:
            e.status = JobStatus.EXPIRED

    @rule(target=pages, lane=st.sampled_from(Lane))
    def publish_again(self, lane: Lane) -> Any:
        """All messages of a lane are lost; two rescue tasks see it at the same time."""
        due = [e for e in self.expected.values() if e.due(self.hour) and e.job.queue is lane]
        lost = []
        for first in (False, True):
            lost += self.call(self.ledger.pages_without_message({lane: new_id()}, first=first))
        assert sorted(lost) == sorted({e.page for e in due})
        new = {page: new_id() for page in lost}
        moved = self.call(self.ledger.repage(lost, list(new.values())))
        assert self.call(self.ledger.repage(lost, [new_id() for _ in lost])) == []
        for e in due:
            e.page, e.due_in_hour = new[e.page], 0
        kinds = Counter((e.page, e.job.model_uri, str(lane), e.crashes == 1) for e in due)
        assert Counter({(p.id, p.model_uri, p.queue, p.first): p.jobs for p in moved}) == kinds
        return multiple(*new.values())

    # What must hold.

    @invariant()
    def the_ledger_is_as_expected(self) -> None:
        rows = [dict(r) for r in self.call(self.world.stage.fetch("SELECT * FROM job FULL JOIN job_input USING (id)"))]
        assert sorted(row["id"] for row in rows) == sorted(self.expected), "lost, doubled or never submitted"
        for row in rows:
            self.row_is_as_expected(row, self.expected[row["id"]])
            self.row_came_from(self.before.get(row["id"]), row)
        self.before = {row["id"]: row for row in rows}

    def row_is_as_expected(self, row: dict[str, Any], e: Expected) -> None:
        status = JobStatus(row["status"])
        assert (status, row["attempt"], row["crashes"]) == (e.status, e.attempt, e.crashes)
        assert row["crashes"] <= row["max_attempts"] == e.job.max_attempts
        assert (row["input"], row["expires_at"]) == (e.job.input.payload, e.job.expires_at)
        assert row["result"] == e.result
        assert (row["result"] is not None) == (row["result_format"] is not None) == (status is JobStatus.SUCCEEDED)
        assert (row["error_code"] is not None) == (status in _WITH_ERROR)
        assert (row["finished_at"] is not None) == status.is_final
        if status is JobStatus.FAILED:
            assert JobError(code=row["error_code"], message=row["error_message"]) == e.error
        if status is JobStatus.RUNNING:
            assert row["worker_id"] == e.holder
        if status is JobStatus.QUEUED:
            assert row["page_id"] == e.page

    def row_came_from(self, before: dict[str, Any] | None, row: dict[str, Any]) -> None:
        status = JobStatus(row["status"])
        if before is None:
            assert (status, row["attempt"]) == (JobStatus.QUEUED, 0)
        elif JobStatus(before["status"]).is_final:
            assert row == before, "a final job has changed"
        else:
            was = JobStatus(before["status"])
            assert status is was or status in TRANSITIONS[was]
            assert row["attempt"] >= before["attempt"]

    def teardown(self) -> None:
        """A late answer, then all workers crash; rescue and one new worker must bring every accepted job to its end."""
        if sys.exc_info()[0] is not None:
            return  # a step has failed already
        if self.claimable_pages():
            self.hang(0, 0, None, "answers")
            self.the_ledger_is_as_expected()
        self.hour_passes(set())
        self.rescue()
        self.the_ledger_is_as_expected()
        self.expire()
        self.the_ledger_is_as_expected()
        self.crash(0, says_so=False, successor="beats")
        for lane in Lane:
            self.publish_again(lane)
            self.the_ledger_is_as_expected()
        while pages := self.claimable_pages():
            held = self.claim(pages[0], 0, WIDE_CAPS).values
            self.the_ledger_is_as_expected()
            self.outcomes_arrive(self.workers[1], held[0], [JobStatus.SUCCEEDED])
            self.put_back(self.workers[1], held[0], "give back")
            self.the_ledger_is_as_expected()
            self.outcomes_arrive(held[0].worker, held[0], [JobStatus.SUCCEEDED])
            self.the_ledger_is_as_expected()
        assert self.call(self.ledger.final_among(list(self.expected))) == set(self.expected), "lost"
        recorded = {JobStatus.SUCCEEDED, JobStatus.FAILED}
        assert all(e.recorded == (e.status in recorded) for e in self.expected.values()), "doubled"

    # Helpers.

    def claimable_pages(self) -> list[UUID]:
        return list(dict.fromkeys(e.page for e in self.expected.values() if e.claimable(self.hour)))

    @staticmethod
    def pick(things: list[Any], n: int) -> Any:
        return things[n % len(things)]


def test_every_accepted_job_ends_once_whatever_happens_in_whatever_order(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every pause is half an hour.
    monkeypatch.setattr("pyfunq.ledger._jitter", HALF_AN_HOUR.total_seconds)

    async def open_world(stack: AsyncExitStack, runner: asyncio.Runner) -> World:
        stage = await asyncpg.connect(database_url)
        stack.push_async_callback(stage.close)
        await stage.execute(CLOCK)
        clocked = f"{database_url}&search_path=clock,pg_catalog,public"
        return World(runner, await stack.enter_async_context(Ledger.open(clocked, max_connections=1)), stage)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            world = runner.run(open_world(stack, runner))
            run_state_machine_as_test(
                lambda: LedgerMachine(world),
                settings=settings(
                    max_examples=60,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(stack.aclose())
