"""The command lines of the programs that Celery and Flower run: worker, beat, Flower."""

import os
import secrets
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pyfunq.job import Lane
from pyfunq.settings import Settings

LANES = f"{Lane.INTERACTIVE},{Lane.BULK}"
_CELERY = [sys.executable, "-m", "celery", "-A", "worker.app"]
# `args` says model and number of jobs, `kwargs` the lane, `result` what became of them.
_FLOWER_COLUMNS = "name,args,kwargs,state,result,received,started,runtime,worker,uuid"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def worker_command(*, concurrency: int, lanes: str = LANES, extra: Sequence[str] = ()) -> list[str]:
    # Gossip and mingle make workers talk to each other, and nothing here listens.
    options = ["--concurrency", str(concurrency), "--queues", lanes, "--without-gossip", "--without-mingle"]
    return [*_CELERY, "worker", "--loglevel", "INFO", *options, *extra]


def beat_command(home: Path) -> list[str]:
    return [
        *_CELERY,
        "beat",
        "--loglevel",
        "INFO",
        "--schedule",
        str(home / "beat-schedule"),
        "--pidfile",
        "",
    ]


def api_command(*, host: str, port: int, processes: int = 1) -> list[str]:
    where = ["--host", host, "--port", str(port), "--processes", str(processes)]
    return [sys.executable, "-m", "producer.api", *where]


def api_is_installed() -> bool:
    """Whether what the extra `api` brings is there."""
    return all(find_spec(name) is not None for name in ("fastapi", "uvicorn", "httptools"))


def flower_command(*, address: str, port: int, extra: Sequence[str] = ()) -> list[str]:
    columns = f"--tasks_columns={_FLOWER_COLUMNS}"
    return [*_CELERY, "flower", f"--address={address}", f"--port={port}", columns, *extra]


def flower_environment(settings: Settings) -> tuple[dict[str, str], str | None]:
    """What Flower reads from its environment, and the password if one had to be made up.

    A password on the command line could be read by every user of the machine.
    """
    if os.environ.get("FLOWER_BASIC_AUTH"):
        return {}, None
    chosen = settings.flower_password
    password = chosen.get_secret_value() if chosen else secrets.token_urlsafe(12)
    return {"FLOWER_BASIC_AUTH": f"{settings.flower_user}:{password}"}, None if chosen else password


def worker_processes(settings: Settings) -> int:
    return settings.concurrency or os.cpu_count() or 1


def thread_environment(concurrency: int) -> dict[str, str]:
    """Gives each worker process its share of the cores, where the operator has not set these variables."""
    share = str(max(1, (os.cpu_count() or 1) // concurrency))
    return {name: share for name in _THREAD_VARIABLES if name not in os.environ}
