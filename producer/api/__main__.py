"""The API's server process: `python -m producer.api --host 127.0.0.1 --port 8080`."""

import argparse
import asyncio
import ipaddress
import sys

import uvicorn

from producer.api.app import make_app
from pyfunq.environment import load_settings
from pyfunq.errors import NotConfigured, PyFunQError
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings

_DRAIN_SECONDS = 20
_KEEP_ALIVE_SECONDS = 75
_MOST_HEADER_BYTES = 64 * 1024


def main() -> None:
    """Ends with 1 and one line that says why where it cannot start."""
    parser = argparse.ArgumentParser(prog="pyfunq api")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    asked = parser.parse_args()
    try:
        run(load_settings(), asked.host, asked.port)
    except PyFunQError as exc:
        sys.exit(f"error: {exc.message}")


def run(settings: Settings, host: str, port: int) -> None:
    """Serves until it is told to stop. Raises NotConfigured, LedgerUnavailable, MigrationNeeded."""
    asyncio.run(_check_open(settings, host))
    uvicorn.run(
        make_app(settings),
        host=host,
        port=port,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        log_level="info",
    )


async def _check_open(settings: Settings, host: str) -> None:
    """Without any key it is this machine's alone."""
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        if await ledger.keys_exist():
            return
    if not is_loopback(host):
        raise NotConfigured(
            f"there is no API key yet, and without one the API serves 127.0.0.1 only, not {host}: "
            "make one with `pyfunq keys create`"
        )
    sys.stderr.write("there is no API key yet: whoever is on this machine may ask; see `pyfunq keys create`\n")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
