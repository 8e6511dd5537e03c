"""A program with embedded servers, for tests that kill it: tells their URLs, then sleeps, or stops them."""

import asyncio
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import redis

from pyfunq.local import EmbeddedPostgres, EmbeddedRedis, StateDirectory


async def remember(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
        return int(await connection.fetchval("SELECT answer FROM kept"))
    finally:
        await connection.close()


def main(home: Path, stop: bool) -> None:
    directory = StateDirectory(home)
    with directory.lock():
        servers = (EmbeddedPostgres(directory), EmbeddedRedis(directory))
        with ThreadPoolExecutor(2) as threads:
            database_url, redis_url = threads.map(lambda server: server.start(), servers)
        answer = asyncio.run(remember(database_url))
        with redis.Redis.from_url(redis_url) as client:
            client.set("kept", "yes")
        told = {"database_url": database_url, "redis_url": redis_url, "answer": answer, "uid": os.getuid()}
        print(json.dumps(told), flush=True)
        if not stop:
            signal.pause()
        for server in servers:
            server.stop()


main(Path(sys.argv[1]), sys.argv[2:] == ["stop"])
