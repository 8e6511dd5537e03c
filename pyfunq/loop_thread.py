"""An event loop in a thread of its own, for programs without one."""

import asyncio
import threading
from collections.abc import Awaitable
from typing import TypeVar

R = TypeVar("R")

_TIDY_SECONDS = 10.0


class LoopThread:
    """Runs from when it is made until `stop`; any thread may use it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, awaitable: Awaitable[R]) -> R:
        """Returns or raises what the awaitable does."""
        ended = threading.Event()

        async def run() -> R:
            try:
                return await awaitable
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                # An interrupted call tidies up, and needs the connections for it.
                ended.wait(_TIDY_SECONDS)
            raise
