"""The workloads (a) to (g): who is asked what, in which order, and what is noted of it."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import asyncpg

from benchmarks.depth import DEPTHS, measure_depth, measure_history
from benchmarks.disturbance import Disturbance
from benchmarks.figures import Figures, percentile
from benchmarks.memory import measure_memory, producer
from benchmarks.models import Backlog, Model, check, random_rows
from benchmarks.pyfunq_side import PyFunQ, PyFunQSession, knows_by_reference
from benchmarks.report import AT_ONCE, BARE_FLOW, BEFOREHAND, BY_REFERENCE, BY_VALUE, ROWS_A_SECOND
from benchmarks.script_side import Script
from benchmarks.servers import Servers
from benchmarks.sessions import Answers, Rows, Session, Side

R = TypeVar("R")

CALLERS = 64
QUICK = (PyFunQ.name, BARE_FLOW)
CHECKPOINT_SECONDS = 300


@dataclass(frozen=True)
class Sizes:
    """Numbers of jobs, calls and rows: the quick ones get more of them, so that everybody is busy for some seconds."""

    scale: float

    def of(self, number: int, least: int) -> int:
        return max(least, round(number * self.scale))

    def thousands(self, number: int, least: int = 1_000) -> int:
        return self.of(number // 1_000, least // 1_000) * 1_000

    def at_once(self, side: Side) -> int:
        return self.thousands(200_000, 2_000) if side.name in QUICK else self.of(2_500, 200)

    def callers(self, side: Side) -> int:
        return self.of(20_000, 500) if side.name in QUICK else self.of(2_000, 200)

    @property
    def idle_calls(self) -> int:
        return self.of(400, 30)

    @property
    def backlog_rows(self) -> int:
        return self.thousands(1_000_000, 20_000)

    @property
    def queued(self) -> int:
        """For (f), by 8 producers of pages of 1,000."""
        return 8 * self.thousands(125_000)

    @property
    def window(self) -> int:
        return self.thousands(150_000, 4_000)

    @property
    def depths(self) -> list[int]:
        return sorted({self.thousands(depth) for depth in DEPTHS})

    @property
    def finished(self) -> int:
        return self.thousands(10_000_000)


@dataclass
class Bench:
    """Everything that a workload may need."""

    servers: Servers
    models: Sequence[Model]
    pyfunq: PyFunQ
    peers: Sequence[Side]
    scripts: Sequence[Script]
    figures: Figures
    sizes: Sizes
    rounds: int
    directory: Path
    """Where the backlogs' files may lie."""
    patience_seconds: float
    """How long each measurement waits for a moment in which the host takes nothing."""
    disturbances: dict[str, Disturbance] = field(default_factory=dict)

    async def measure(self, name: str, once: Callable[[], Awaitable[R]]) -> R:
        """For a workload: what `once` returns, undisturbed if possible."""
        return await self.disturbances.setdefault(name, Disturbance(self.settle, self.patience_seconds)).measure(once)

    def only(self, *names: str) -> Figures:
        """With a remark on what the host took."""
        found = {name: self.figures[name] for name in names if name in self.figures}
        for name, workload in found.items():
            if name in self.disturbances:
                workload.remark(str(self.disturbances[name]))
        return found

    async def settle(self) -> None:
        """Writes out what was measured before, so that nobody pays for another's pages."""
        connection = await asyncpg.connect(self.servers.database)
        await connection.execute("CHECKPOINT", timeout=CHECKPOINT_SECONDS)
        await connection.close()

    def turns(self, round_: int, sides: Sequence[Side]) -> Sequence[Side]:
        """Forward in one round, backward in the next."""
        return sides if round_ % 2 == 0 else sides[::-1]


def say(text: str) -> None:
    print(text, flush=True)


async def singles(bench: Bench, only: Sequence[str]) -> None:
    """(a), (b) and (d): each side, in its turn, is asked all three."""
    sides: list[Side] = [bench.pyfunq, *bench.peers]
    for round_ in range(bench.rounds):
        for model in bench.models:
            for side in bench.turns(round_, sides):
                say(f"round {round_ + 1}, {model.name}, {side.name}")
                async with side.serving(model) as session:
                    if "a" in only and side.has_queue:
                        await _at_once(bench, side, session, model)
                    if "b" in only:
                        await _callers(bench, side, session, model)
                    if "d" in only:
                        await _idle(bench, side, session, model)


async def _at_once(bench: Bench, side: Side, session: Session, model: Model) -> None:
    rows = random_rows(bench.sizes.at_once(side), seed=10)
    truth, workload = model.truth(rows), bench.figures["a"]
    for beforehand in (False, True) if side.takes_beforehand else (False,):
        answers = await bench.measure("a", partial(session.at_once, rows, beforehand=beforehand))
        check(f"(a) {side.name}, {model.name}", answers.predictions, truth)
        metric = BEFOREHAND if beforehand else AT_ONCE
        workload.add(side.name, model.name, metric, len(rows) / answers.seconds)
        say(f"  (a) {metric}: {len(rows) / answers.seconds:,.0f}")


async def _callers(bench: Bench, side: Side, session: Session, model: Model) -> None:
    rows = random_rows(bench.sizes.callers(side), seed=11)
    answers = await bench.measure("b", partial(session.callers, rows, CALLERS))
    check(f"(b) {side.name}, {model.name}", answers.predictions, model.truth(rows))
    bench.figures["b"].add(side.name, model.name, AT_ONCE, len(rows) / answers.seconds)
    _add_latencies(bench, "b", side.name, model, answers)


async def _idle(bench: Bench, side: Side, session: Session, model: Model) -> None:
    rows = random_rows(bench.sizes.idle_calls, seed=12)
    answers = await bench.measure("d", partial(session.callers, rows, 1))
    check(f"(d) {side.name}, {model.name}", answers.predictions, model.truth(rows))
    _add_latencies(bench, "d", side.name, model, answers)


def _add_latencies(bench: Bench, workload: str, name: str, model: Model, answers: Answers) -> None:
    p50, p99 = (1000 * percentile(answers.latencies, q) for q in (50, 99))
    bench.figures[workload].add(name, model.name, "p50 ms", p50)
    bench.figures[workload].add(name, model.name, "p99 ms", p99)
    rate = len(answers.latencies) / answers.seconds
    say(f"  ({workload}) {rate:,.0f} jobs/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


async def backlogs(bench: Bench, backlog: Backlog, warm: Backlog) -> None:
    """(c): by value and by reference, and the scripts; each predicts a small backlog first."""
    if not knows_by_reference():
        bench.figures["c"].remark(f"{BY_REFERENCE}: this version cannot.")
    sides: list[Script | PyFunQ] = [*bench.scripts, bench.pyfunq]
    for round_ in range(bench.rounds):
        for model in bench.models:
            say(f"round {round_ + 1}, {model.name}, backlogs")
            for side in sides if round_ % 2 == 0 else sides[::-1]:
                if isinstance(side, Script):
                    await _script_backlog(bench, side, model, backlog, warm)
                else:
                    await _pyfunq_backlogs(bench, side, model, backlog, warm)


async def _script_backlog(bench: Bench, side: Script, model: Model, backlog: Backlog, warm: Backlog) -> None:
    async with side.serving(model) as session:
        _check_backlog(side.name, model, warm, await session.backlog(warm))
        answers = await bench.measure("c", partial(session.backlog, backlog))
        _add_backlog(bench, side.name, model, backlog, answers)


async def _pyfunq_backlogs(bench: Bench, side: PyFunQ, model: Model, backlog: Backlog, warm: Backlog) -> None:
    async with side.serving(model) as session:
        for by_reference in (False, True) if knows_by_reference() else (False,):
            name = BY_REFERENCE if by_reference else BY_VALUE
            _check_backlog(name, model, warm, await session.backlog(warm, by_reference=by_reference))
            answers = await bench.measure("c", partial(session.backlog, backlog, by_reference=by_reference))
            _add_backlog(bench, name, model, backlog, answers)


def _check_backlog(name: str, model: Model, backlog: Backlog, answers: Answers) -> None:
    check(f"(c) {name}, {model.name}", answers.predictions, backlog.truths[model.name])


def _add_backlog(bench: Bench, name: str, model: Model, backlog: Backlog, answers: Answers) -> None:
    _check_backlog(name, model, backlog, answers)
    rate = backlog.rows / answers.seconds
    bench.figures["c"].add(name, model.name, ROWS_A_SECOND, rate)
    say(f"  (c) {name}: {rate:,.0f} rows/s")


async def latency_under_backlog(bench: Bench, backlog: Backlog) -> None:
    """(e): one caller, while another process submits (c) by value again and again."""
    rows = random_rows(bench.sizes.idle_calls, seed=13)
    for round_ in range(bench.rounds):
        for model in bench.models:
            say(f"round {round_ + 1}, {model.name}, one caller beside a backlog")
            async with bench.pyfunq.serving(model) as session:
                answers, rate = await bench.measure("e", partial(_beside, bench, session, model, backlog, rows))
            check(f"(e) {model.name}", answers.predictions, model.truth(rows))
            _add_latencies(bench, "e", bench.pyfunq.name, model, answers)
            bench.figures["e"].add(bench.pyfunq.name, model.name, "the backlog meanwhile, rows/s", rate)


async def _beside(
    bench: Bench, session: PyFunQSession, model: Model, backlog: Backlog, rows: Rows
) -> tuple[Answers, float]:
    async with _worked_off(bench, model, backlog):
        found = await session.beside_a_backlog(rows)
    await session.ledger.until_done()
    await session.ledger.check_none_failed()
    await session.ledger.forget()
    return found


@asynccontextmanager
async def _worked_off(bench: Bench, model: Model, backlog: Backlog) -> AsyncIterator[None]:
    conversation = producer(bench.pyfunq, "backlogs", model, backlog.path)
    try:
        await conversation.answer()
        yield
        conversation.end_input()
        json.loads(await conversation.answer())
    finally:
        await conversation.close()


async def memory(bench: Bench) -> None:
    """(f), with the first model."""
    for round_ in range(bench.rounds):
        for kind in ("many", "singles"):
            say(f"round {round_ + 1}, memory, {kind}")
            options = (bench.figures["f"], bench.pyfunq, bench.servers, bench.models[0])
            await measure_memory(*options, bench.sizes.queued, kind)


async def depth(bench: Bench) -> None:
    """(g), with the first model."""
    workload, model, sizes = bench.figures["g"], bench.models[0], bench.sizes
    measure = partial(bench.measure, "g")
    for round_ in range(bench.rounds):
        say(f"round {round_ + 1}, depth")
        depths = sizes.depths if round_ % 2 == 0 else sizes.depths[::-1]
        await measure_depth(workload, bench.pyfunq, model, depths, sizes.window, measure)
    await measure_history(workload, bench.pyfunq, model, sizes.finished, sizes.window, bench.rounds, measure)
