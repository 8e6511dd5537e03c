"""The API under uvicorn: one process, or several that share a socket."""

import asyncio
import gc
import signal
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from producer.api.app import make_app
from producer.api.callers import is_loopback
from producer.api.connections import Connection, Limits
from pyfunq.environment import load_settings
from pyfunq.errors import NotConfigured
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings

_DRAIN_SECONDS = 20
_KEEP_ALIVE_SECONDS = 75
_STARTING_SECONDS = 60
_CONNECTIONS_A_REQUEST = 2


class ServerConfig(uvicorn.Config):
    """uvicorn's, with the limits of `Connection`."""

    def __init__(self, app: Any, settings: Settings, **more: Any) -> None:
        super().__init__(
            app,
            http=Connection,
            ws="none",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            timeout_worker_healthcheck=_STARTING_SECONDS,
            **more,
        )
        self.limits = Limits(
            connections=_CONNECTIONS_A_REQUEST * settings.api_max_requests, slow_seconds=settings.api_slow_seconds
        )


def run(settings: Settings, host: str, port: int, processes: int = 1) -> None:
    """Serves until it is told to stop. Raises NotConfigured, LedgerUnavailable, MigrationNeeded."""
    asyncio.run(check_open(settings, host))
    if processes > 1:
        _run_several(settings, host, port, processes)
        return
    # uvicorn raises the signal again that it has obeyed; who was told to stop, and did, has not failed.
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, lambda *_: sys.exit(0))
    app = make_app(settings, _keep_what_is_there)
    server = uvicorn.Server(ServerConfig(app, settings, host=host, port=port, log_level="info"))
    server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _run_several(settings: Settings, host: str, port: int, processes: int) -> None:
    app = f"{__name__}:{app_of_environment.__name__}"
    config = ServerConfig(app, settings, factory=True, workers=processes, host=host, port=port, log_level="info")
    Multiprocess(config, sockets=[config.bind_socket()]).run()


def app_of_environment() -> FastAPI:
    """For each of several processes: they begin anew, with the same environment."""
    return make_app(load_settings(), _keep_what_is_there)


def _keep_what_is_there() -> None:
    """The garbage collector need not look at it again and again while callers wait."""
    gc.collect()
    gc.freeze()


async def check_open(settings: Settings, host: str) -> None:
    """Without any key it is this machine's alone. Raises NotConfigured where `host` is more than that."""
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        if await ledger.keys_exist():
            return
    if settings.api_require_key:
        sys.stderr.write("there is no API key yet, and one is needed; see `pyfunq keys create`\n")
        return
    if not is_loopback(host):
        raise NotConfigured(
            f"there is no API key yet, and without one the API serves 127.0.0.1 only, not {host}: "
            "make one with `pyfunq keys create`, or set PYFUNQ_API_REQUIRE_KEY=true"
        )
    sys.stderr.write("there is no API key yet: whoever is on this machine may ask; see `pyfunq keys create`\n")
