"""Waiting until the worker processes serve what they were asked to, or say why they do not."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from pyfunq.entries import LoadFailure, Serving
from pyfunq.errors import WaitTimeout
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings

_LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the ledger says of the worker processes at one moment of Postgres' clock."""

    at: datetime
    processes: frozenset[str]
    serving: tuple[Serving, ...]
    failures: tuple[LoadFailure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """How far the worker processes are: those that serve the version, that could not load it, that do neither yet."""

    ready: tuple[Serving, ...]
    failed: tuple[LoadFailure, ...]
    pending: tuple[str, ...]


def process_of(row: Serving | LoadFailure) -> str:
    return f"{row.hostname}:{row.pid}"


async def look(ledger: Ledger, stale_seconds: float) -> Seen:
    return Seen(
        at=await ledger.clock(),
        processes=frozenset(f"{w['hostname']}:{w['pid']}" for w in await ledger.live_workers(stale_seconds)),
        serving=tuple(await ledger.serving(stale_seconds=stale_seconds)),
        failures=tuple(await ledger.load_failures()),
    )


def after_move(seen: Seen, model_uri: str, version: str, since: datetime) -> Followed:
    """Of the processes that serve the URI, or tried to load this version for it."""
    failed = _failed(seen, model_uri, version, since)
    concerned = {process_of(s) for s in seen.serving if s.model_uri == model_uri}
    return _followed(seen, model_uri, version, failed, concerned | failed.keys())


def after_warming(seen: Seen, model_uri: str, version: str | None, since: datetime) -> Followed:
    """Of all processes; where it is not known what the URI means, any version will do."""
    return _followed(seen, model_uri, version, _failed(seen, model_uri, version, since), seen.processes)


async def follow(
    ledger: Ledger,
    settings: Settings,
    assess: Callable[[Seen], Followed],
    seconds: float,
    on_look: Callable[[Followed], None] = lambda _: None,
) -> Followed:
    """Looks until no process is pending. Raises WaitTimeout, naming those that are, after `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        followed = assess(await look(ledger, settings.stale_seconds))
        on_look(followed)
        if not followed.pending:
            return followed
        if loop.time() > deadline:
            raise WaitTimeout(f"not within {seconds:g} s; still without it: {', '.join(followed.pending)}")
        await asyncio.sleep(_LOOK_SECONDS)


def _failed(seen: Seen, model_uri: str, version: str | None, since: datetime) -> dict[str, LoadFailure]:
    """By process. What failed before `since` counts as well where it is not to be tried again yet."""
    return {
        process_of(f): f
        for f in seen.failures
        if f.model_uri == model_uri
        and version in (None, f.version)
        and f.reason is not None
        and (f.failed_at >= since or f.next_try_at > seen.at)
        and process_of(f) in seen.processes
    }


def _followed(
    seen: Seen, model_uri: str, version: str | None, failed: dict[str, LoadFailure], processes: Iterable[str]
) -> Followed:
    ready = {process_of(s): s for s in seen.serving if s.model_uri == model_uri and version in (None, s.version)}
    others = sorted(set(processes) - ready.keys())
    return Followed(
        ready=tuple(ready[p] for p in sorted(ready)),
        failed=tuple(failed[p] for p in others if p in failed),
        pending=tuple(p for p in others if p not in failed),
    )
