"""The client's methods for many jobs at once: predict a frame, map inputs to results, take jobs as they end."""

import asyncio
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import aclosing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyfunq.errors import BacklogFull, InvalidInput, PyFunQError, WaitTimeout
from pyfunq.job import Job, Lane
from pyfunq.progress import progress_bar
from pyfunq.results import with_index
from pyfunq.settings import Settings
from pyfunq.submitted import job_id_of

if TYPE_CHECKING:
    import pandas as pd

IN_FLIGHT = 256
_GATHER_SECONDS = 0.01
_FETCHED_AT_ONCE = 16
_WATCHED_AT_ONCE = 5_000
_STOP_SECONDS = 10.0
_TURN_SECONDS = 20.0
_TURN_SECONDS_OF_SEVERAL = 1.0

Inputs = Iterable[Any] | AsyncIterable[Any]


class AsyncAhead:
    """The part of `AsyncClient` that concerns many jobs at once."""

    _settings: Settings

    async def submit_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        params: Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        retries: int = 0,
    ) -> Sequence[Job]:
        raise NotImplementedError

    async def result(self, job: Job | UUID | str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        raise NotImplementedError

    async def _some_final(self, ids: Sequence[UUID], seconds: float) -> Sequence[Job]:
        """Those of the jobs that are final, as soon as one is; none after so many seconds. Raises UnknownJob."""
        raise NotImplementedError

    async def _cancel_all(self, ids: Sequence[UUID]) -> None:
        raise NotImplementedError

    async def predict(
        self,
        model: str,
        df: "pd.DataFrame",
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        progress: bool = False,
    ) -> Any:
        """Predicts a DataFrame through the queue: a Series or DataFrame with its index.

        More rows than a job holds become several jobs. `progress`: a bar on stderr, where that is a terminal. Raises
        what `submit` and `result` raise.
        """
        import pandas as pd

        rows, done = self._settings.chunk_rows, 0
        jobs = await self.submit_many(model, [df.iloc[i : i + rows] for i in range(0, max(1, len(df)), rows)])
        starts = range(0, len(df), rows)
        with progress_bar("predict", shown=progress, total=len(df)) as show:

            async def part_of(job: Job) -> Any:
                nonlocal done
                part = await self.result(job, timeout)
                done += job.rows
                show(done, len(df))
                return part

            parts = await asyncio.gather(*(part_of(job) for job in jobs))
        return pd.concat([with_index(p, df.index[i : i + rows]) for i, p in zip(starts, parts, strict=True)])

    async def map(
        self,
        model: str,
        inputs: Inputs,
        *,
        params: Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        retries: int = 0,
        in_flight: int = IN_FLIGHT,
        timeout: float | None = None,  # noqa: ASYNC109
        progress: bool = False,
    ) -> AsyncIterator[Any]:
        """The results of inputs, each as for `result`, in their order; those of DataFrames with their index.

        Each input becomes a job. `inputs` is read in a thread, so it may block, and ahead of what is yielded by at most
        `in_flight` jobs. `timeout`: seconds that the next result may take. A job without a result raises its error;
        then, and when this is left early, what was submitted ahead is cancelled. Where the lane is full, this waits.
        """
        if in_flight < 1:
            raise InvalidInput("in_flight is a positive number of jobs", field="in_flight")
        if hasattr(inputs, "columns") or isinstance(inputs, Mapping):
            raise InvalidInput("map takes an iterable of inputs; one DataFrame is for predict", field="inputs")
        ahead = _Ahead(
            self,
            lambda part: self.submit_many(model, part, params=params, lane=lane, retries=retries),
            _Source(inputs),
            in_flight,
        )
        total, done = len(inputs) if isinstance(inputs, Sized) else None, 0
        with progress_bar("map", shown=progress, total=total) as show:
            async with aclosing(ahead.results(timeout)) as results:
                async for result in results:
                    done += 1
                    show(done, total)
                    yield result

    async def as_completed(
        self,
        jobs: Iterable[Job | UUID | str],
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncIterator[Job]:
        """The jobs as they end, whichever way, each once. Raises WaitTimeout after `timeout` seconds, UnknownJob."""
        deadline = None if timeout is None else time.monotonic() + timeout
        left = dict.fromkeys(map(job_id_of, jobs))
        while left:
            watched = list(islice(left, _WATCHED_AT_ONCE))
            turn = _TURN_SECONDS if len(watched) == len(left) else _TURN_SECONDS_OF_SEVERAL
            if deadline is not None:
                turn = min(turn, max(0.0, deadline - time.monotonic()))
            ended = await self._some_final(watched, turn)
            for job in ended:
                del left[job.id]
                yield job
            if not ended:
                if deadline is not None and time.monotonic() >= deadline:
                    raise WaitTimeout(f"{len(left):,} jobs were not finished after {timeout:g} s; they go on")
                for job_id in watched:  # the others' turn
                    left[job_id] = left.pop(job_id)


class _Source:
    """Inputs, read a few at a time: as many as come within 10 ms."""

    def __init__(self, inputs: Inputs) -> None:
        self._async = aiter(inputs) if isinstance(inputs, AsyncIterable) else None
        self._sync: Iterator[Any] = iter(()) if isinstance(inputs, AsyncIterable) else iter(inputs)

    async def take(self, at_most: int) -> list[Any]:
        """None at the end."""
        if self._async is None:
            return await asyncio.to_thread(self._take, at_most)
        part: list[Any] = []
        until = time.monotonic() + _GATHER_SECONDS
        async for one in self._async:
            part.append(one)
            if len(part) == at_most or time.monotonic() > until:
                break
        return part

    def _take(self, at_most: int) -> list[Any]:
        part: list[Any] = []
        until = time.monotonic() + _GATHER_SECONDS
        for one in self._sync:
            part.append(one)
            if len(part) == at_most or time.monotonic() > until:
                break
        return part


class _Ahead:
    """Submits inputs and fetches results ahead of whoever takes these."""

    def __init__(
        self,
        client: AsyncAhead,
        submit: Callable[[list[Any]], Awaitable[Sequence[Job]]],
        source: _Source,
        in_flight: int,
    ) -> None:
        self._client = client
        self._submit = submit
        self._source = source
        self._in_flight = in_flight
        self._window: deque[tuple[Job, pd.Index[Any] | None, asyncio.Task[Any]]] = deque()
        self._fetching = asyncio.Semaphore(min(_FETCHED_AT_ONCE, in_flight))
        self._changed = asyncio.Condition()
        self._failure: Exception | None = None
        self._ended = False
        self._submitting: asyncio.Future[Sequence[Job]] | None = None
        """Under way, or done and not in the window yet."""

    async def results(self, timeout: float | None) -> AsyncGenerator[Any, None]:  # noqa: ASYNC109
        pump = asyncio.create_task(self._pump())
        try:
            while await self._has_next():
                job, index, fetched = self._window[0]
                if not (await asyncio.wait([fetched], timeout=timeout))[0]:
                    raise WaitTimeout(f"job {job.id} was not finished after {timeout:g} s")
                result = fetched.result()
                async with self._changed:
                    self._window.popleft()
                    self._changed.notify_all()
                yield result if index is None else with_index(result, index)
            if self._failure is not None:
                raise self._failure
        finally:
            await self._stop(pump)

    async def _has_next(self) -> bool:
        async with self._changed:
            await self._changed.wait_for(lambda: self._window or self._ended)
        return bool(self._window)

    async def _pump(self) -> None:
        try:
            while part := await self._source.take(await self._room()):
                jobs = await self._submit_when_there_is_room(part)
                async with self._changed:
                    for job, one in zip(jobs, part, strict=True):
                        self._window.append((job, _index_of(one), asyncio.create_task(self._fetch(job))))
                    self._submitting = None
                    self._changed.notify_all()
                del part  # what is not needed is not held while the next is waited for
        except Exception as exc:  # it belongs to whoever takes the results, after those of what went before
            self._failure = exc
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def _room(self) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._window) < self._in_flight)
        return self._in_flight - len(self._window)

    async def _submit_when_there_is_room(self, part: list[Any]) -> Sequence[Job]:
        while True:
            self._submitting = asyncio.ensure_future(self._submit(part))
            try:
                return await asyncio.shield(self._submitting)
            except BacklogFull as exc:
                await asyncio.sleep(exc.retry_after_seconds)

    async def _fetch(self, job: Job) -> Any:
        async with self._fetching:
            return await self._client.result(job)

    async def _stop(self, pump: "asyncio.Task[None]") -> None:
        tasks = [pump, *(fetched for _, _, fetched in self._window)]
        unneeded = [job.id for job, _, fetched in self._window if not fetched.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        unneeded.extend(await self._submitted_last())
        if unneeded:
            with suppress(PyFunQError):
                await self._client._cancel_all(unneeded)

    async def _submitted_last(self) -> list[UUID]:
        """What was being submitted when this stopped: it may be committed all the same."""
        if self._submitting is None:
            return []
        try:
            return [job.id for job in await asyncio.wait_for(self._submitting, _STOP_SECONDS)]
        except (PyFunQError, TimeoutError):
            return []


def _index_of(one: Any) -> "pd.Index[Any] | None":
    """A DataFrame's."""
    return getattr(one, "index", None) if hasattr(one, "iloc") else None
