"""`pyfunq doctor`: is everything there, and if not, what to do."""

import asyncio
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from producer.output import show_json, show_table
from producer.stack import without_password
from pyfunq.environment import load_settings
from pyfunq.errors import PyFunQError
from pyfunq.job import Lane
from pyfunq.lanes import first_queue, queues_of
from pyfunq.ledger import Ledger
from pyfunq.migrate import migration_state
from pyfunq.settings import Settings

_SKEW_SECONDS = 1.0
_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: what was seen, and what to do where it is not well."""

    check: str
    ok: bool
    seen: str
    advice: str = ""


def run_doctor(*, as_json: bool) -> bool:
    """Shows all findings; whether all are well."""
    settings = load_settings()
    findings = asyncio.run(examine(settings))
    if as_json:
        for finding in findings:
            show_json(finding)
    else:
        show_table(
            ("check", "", "seen", "what to do"),
            ((f.check, "ok" if f.ok else "FAILED", f.seen, f.advice) for f in findings),
        )
    return all(f.ok for f in findings)


async def examine(settings: Settings) -> list[Finding]:
    checks: list[tuple[str, Callable[[Settings], Coroutine[Any, Any, Finding]], str]] = [
        ("postgres", _postgres, "check PYFUNQ_DATABASE_URL, or start everything here with `pyfunq up`"),
        ("migrations", _migrations, "run `pyfunq migrate`"),
        ("redis", _redis, "check PYFUNQ_REDIS_URL, or start everything here with `pyfunq up`"),
        ("mlflow", _mlflow, "check MLFLOW_TRACKING_URI and that the server accepts this host's name"),
        ("workers", _workers, "start one with `pyfunq worker`"),
        ("clock", _clock, "run NTP on this host and on Postgres' host: deadlines compare their clocks"),
    ]
    findings = []
    for name, check, advice in checks:
        try:
            async with asyncio.timeout(_SECONDS + 1):
                findings.append(await check(settings))
        except PyFunQError as exc:
            findings.append(Finding(check=name, ok=False, seen=exc.message, advice=advice))
        except TimeoutError:
            findings.append(Finding(check=name, ok=False, seen=f"no answer within {_SECONDS:g} s", advice=advice))
    return findings


async def _postgres(settings: Settings) -> Finding:
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        await ledger.clock()
    return Finding(check="postgres", ok=True, seen=without_password(settings.database))


async def _migrations(settings: Settings) -> Finding:
    state = await migration_state(settings.database)
    if state.pending:
        return Finding(
            check="migrations",
            ok=False,
            seen=f"pending: {', '.join(state.pending)}",
            advice="run `pyfunq migrate`",
        )
    return Finding(check="migrations", ok=True, seen=f"{len(state.applied)} applied")


async def _redis(settings: Settings) -> Finding:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    shown = without_password(settings.redis)
    try:
        async with Redis.from_url(settings.redis, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS) as redis:
            config = await redis.config_get("maxmemory-policy")
            waiting = sum([await redis.llen(q) for lane in Lane for q in (first_queue(lane), *queues_of(lane))])
    except (RedisError, OSError) as exc:
        return Finding(
            check="redis",
            ok=False,
            seen=f"{shown}: {type(exc).__name__}",
            advice="check PYFUNQ_REDIS_URL, or start everything here with `pyfunq up`",
        )
    policy = config.get("maxmemory-policy", "noeviction")
    return Finding(
        check="redis",
        ok=policy == "noeviction",
        seen=f"{shown}, {waiting} messages waiting, maxmemory-policy {policy}",
        advice="" if policy == "noeviction" else "set maxmemory-policy noeviction: anything else drops messages",
    )


async def _mlflow(settings: Settings) -> Finding:
    url = settings.mlflow
    if not url.startswith(("http://", "https://")):
        return Finding(check="mlflow", ok=True, seen=f"{without_password(url)} (not a server: not asked)")
    # /health answers even where the server refuses this host's name, so ask what workers ask.
    ask = f"{url.rstrip('/')}/api/2.0/mlflow/registered-models/search?max_results=1"
    try:
        await asyncio.to_thread(_get, ask)
    except urllib.error.HTTPError as exc:
        advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or start the server with --allowed-hosts"
        refused = exc.code in (401, 403)
        return Finding(
            check="mlflow",
            ok=False,
            seen=f"{without_password(url)} answered {exc.code}",
            advice=advice if refused else "look at the server's log",
        )
    except OSError as exc:
        return Finding(
            check="mlflow",
            ok=False,
            seen=f"{without_password(url)}: {type(exc).__name__}",
            advice="check MLFLOW_TRACKING_URI, or start everything here with `pyfunq up`",
        )
    return Finding(check="mlflow", ok=True, seen=without_password(url))


def _get(url: str) -> None:
    import base64

    request = urllib.request.Request(url)  # noqa: S310
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
        pass


async def _workers(settings: Settings) -> Finding:
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        alive = await ledger.live_workers(settings.stale_seconds)
        waiting = sum(d["jobs"] for d in await ledger.queue_depth())
    hosts = sorted({w["hostname"] for w in alive})
    if not alive:
        return Finding(
            check="workers",
            ok=False,
            seen=f"none in the last {settings.stale_seconds:g} s; {waiting} jobs wait",
            advice="start one with `pyfunq worker`",
        )
    return Finding(check="workers", ok=True, seen=f"{len(alive)} processes on {', '.join(hosts)}; {waiting} jobs wait")


async def _clock(settings: Settings) -> Finding:
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        before = time.time()
        theirs = await ledger.clock()
        after = time.time()
    skew = abs(theirs - datetime.fromtimestamp((before + after) / 2, UTC)).total_seconds()
    skew = max(0.0, skew - (after - before) / 2)
    return Finding(
        check="clock",
        ok=skew <= _SKEW_SECONDS,
        seen=f"{skew:.3f} s between this host and Postgres",
        advice="" if skew <= _SKEW_SECONDS else "run NTP on both hosts: deadlines compare their clocks",
    )
