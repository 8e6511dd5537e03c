"""What a run was made on: the machine, the versions of what took part, the date."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from redis import Redis

from benchmarks.failure import BenchmarkFailed
from benchmarks.servers import Servers

PACKAGES = ("pyfunq", "celery", "mlflow", "scikit-learn", "numpy", "pandas", "pyarrow", "asyncpg", "redis")
_DURABILITY = ("fsync", "synchronous_commit", "full_page_writes")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


async def conditions(servers: Servers) -> dict[str, Any]:
    """Raises BenchmarkFailed where Postgres would not keep what it has acknowledged."""
    connection = await asyncpg.connect(servers.database)
    durable = {name: await connection.fetchval(f"SHOW {name}") for name in _DURABILITY}
    postgres = await connection.fetchval("SHOW server_version")
    await connection.close()
    if any(value != "on" for value in durable.values()):
        raise BenchmarkFailed(f"Postgres is not durable: {durable}")
    with Redis.from_url(servers.redis) as redis:
        info = redis.info("server")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {**versions(), "postgres server": postgres, "redis server": info["redis_version"]},
        "postgres": durable,
        "load_before": round(os.getloadavg()[0], 2),
    }
