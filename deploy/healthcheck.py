"""The containers' health checks: `worker`, `beat` or `http URL`; exit code 0 where the program does its work."""

import asyncio
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from pyfunq.environment import read_settings
from pyfunq.errors import PyFunQError
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings

BEAT_SECONDS = 60.0
"""Beat notes each task that it sends; the defaults send one every 5 s."""
HTTP_SECONDS = 5.0


async def worker_problem(settings: Settings) -> str | None:
    """What is wrong: no process of this host has a fresh heartbeat in the ledger, or Postgres is away."""
    try:
        async with Ledger.open(settings.database, max_connections=1) as ledger:
            alive = await ledger.live_workers(settings.stale_seconds)
    except PyFunQError as exc:
        return exc.message
    if any(worker["hostname"] == socket.gethostname() for worker in alive):
        return None
    return f"no worker process of this host has a heartbeat younger than {settings.stale_seconds:g} s"


def beat_problem(settings: Settings) -> str | None:
    """What is wrong: beat has sent nothing lately. Needs a beat that runs with beat_sync_every=1."""
    # Some of the formats that dbm chooses from append to the name.
    written = [file.stat().st_mtime for file in settings.home.glob("beat-schedule*")]
    if not written:
        return "beat has not started: there is no schedule"
    age = time.time() - max(written)
    limit = max(BEAT_SECONDS, 3 * min(settings.registry_watch_seconds, settings.rescue_seconds))
    return None if age < limit else f"beat has sent nothing for {age:.0f} s"


def http_problem(url: str) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=HTTP_SECONDS):
            return None
    except urllib.error.HTTPError as exc:
        return f"answered {exc.code}"
    except OSError as exc:
        return f"no answer ({type(exc).__name__})"


def main(arguments: list[str]) -> str | None:
    """What is wrong, for the container's health log; None when all is well."""
    match arguments:
        case ["worker"]:
            return asyncio.run(worker_problem(read_settings()))
        case ["beat"]:
            return beat_problem(read_settings())
        case ["http", url]:
            return http_problem(url)
        case _:
            return f"usage: {Path(__file__).name} worker | beat | http URL"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
