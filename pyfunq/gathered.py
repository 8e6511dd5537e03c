"""Questions of one kind that are asked together: while one statement is under way, the next ones gather."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Gathered(Generic[K, V]):
    """Belongs to the event loop that first asks. A question that comes alone is asked at once."""

    def __init__(self, ask: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, at_most: int = 1_000) -> None:
        """`ask` answers up to `at_most` different questions, and leaves out those without an answer."""
        self._ask = ask
        self._at_most = at_most
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The answer, as it is after this call began; raises what `ask` raises."""
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self.ask_for(key, future)
        return await future

    def ask_for(self, key: K, future: "asyncio.Future[V | None]") -> None:
        """`get`, for whoever waits for the future."""
        self._waiting.setdefault(key, []).append(future)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())

    async def close(self) -> None:
        if self._asking is not None:
            await asyncio.wait([self._asking])

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                keys = list(self._waiting)[: self._at_most]
                futures = {key: self._waiting.pop(key) for key in keys}
                try:
                    answers = await self._ask(keys)
                except Exception as exc:  # it belongs to those who asked
                    self._tell(futures, exc)
                else:
                    self._tell(futures, answers)
        finally:
            self._asking = None

    @staticmethod
    def _tell(futures: Mapping[K, Sequence[asyncio.Future[V | None]]], answers: Mapping[K, V] | Exception) -> None:
        for key, several in futures.items():
            for future in several:
                if future.done():
                    continue
                if isinstance(answers, Exception):
                    future.set_exception(answers)
                else:
                    future.set_result(answers.get(key))
