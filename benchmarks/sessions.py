"""What every side of the comparison can be asked: all rows at once, or by callers that wait; and the clock."""

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, TimeoutExpired
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.models import Model
from benchmarks.servers import Program

Rows = npt.NDArray[np.float64]
PEERS = Path(__file__).parent / "peers"
GIVE_UP_SECONDS = 900.0


@dataclass
class Answers:
    """Predictions in the order of the rows, the seconds they took together, and each call's own."""

    seconds: float
    predictions: Sequence[Any] | npt.NDArray[Any]
    latencies: list[float] = field(default_factory=list)


class Session(Protocol):
    """A side that serves one model, warm."""

    async def at_once(self, rows: Rows, *, beforehand: bool = False) -> Answers:
        """A job a row, from the first submit to the last stored result.

        `beforehand`: the clock begins when all are queued and the worker, which stood still, goes on.
        """

    async def callers(self, rows: Rows, callers: int) -> Answers:
        """A job a row, by concurrent callers that each wait for one before they submit the next."""


class Side(Protocol):
    name: str
    has_queue: bool
    """Whether `at_once` says anything that `callers` does not."""
    takes_beforehand: bool

    def serving(self, model: Model) -> AbstractAsyncContextManager[Session]:
        """Starts it, or wakes it, with the model loaded; it stands still or is gone when the context ends."""


@contextmanager
def no_collections() -> Iterator[None]:
    """Spares the garbage collector what was prepared: it would read all of it again and again, in the measured time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def by_callers(call: Callable[[int], Awaitable[Any]], calls: int, callers: int) -> Answers:
    """Times `call(0)` to `call(calls - 1)`, `callers` of them at a time. Raises TimeoutError when they do not end."""
    predictions: list[Any] = [None] * calls
    latencies = [0.0] * calls
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            begun = time.perf_counter()
            predictions[number] = await call(number)
            latencies[number] = time.perf_counter() - begun

    with no_collections():
        begun = time.perf_counter()
        async with asyncio.timeout(GIVE_UP_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(caller())
        seconds = time.perf_counter() - begun
    return Answers(seconds, predictions, latencies)


class Conversation:
    """A program that is asked by lines on its standard input and answers by lines on its output."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path, cwd: Path = PEERS
    ) -> None:
        self._program = Program(command, environment, log, cwd, stdin=PIPE, stdout=PIPE, text=True)
        assert self._program.process.stdin is not None
        assert self._program.process.stdout is not None
        self._input, self._output = self._program.process.stdin, self._program.process.stdout

    @property
    def pid(self) -> int:
        return self._program.pid

    async def answer(self) -> str:
        line = await asyncio.to_thread(self._output.readline)
        if not line:
            self._program.process.wait()
            self._program.check()
        return str(line).strip()

    def tell(self, line: str) -> None:
        self._input.write(line + "\n")
        self._input.flush()

    async def ask(self, line: str) -> str:
        self.tell(line)
        return await self.answer()

    async def ask_json(self, request: Mapping[str, Any]) -> Any:
        return json.loads(await self.ask(json.dumps(request)))

    def end_input(self) -> None:
        self._input.close()

    async def close(self) -> None:
        """Ends its input, and it with that; it is terminated when it takes too long."""
        self.end_input()
        with suppress(TimeoutExpired):
            await asyncio.to_thread(self._program.process.wait, 30)
        self._program.stop()
