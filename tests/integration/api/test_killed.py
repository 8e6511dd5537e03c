"""The API killed under load: what it has answered is in the ledger, and asking again does nothing twice."""

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import asyncpg
import httpx
import pytest

from producer.programs import api_command
from pyfunq.environment import child_environment
from pyfunq.ids import new_id
from pyfunq.ledger import Ledger
from pyfunq.local.server import free_port
from pyfunq.settings import Settings
from tests.integration.conftest import SETOSA, split
from tests.programs import until

CALLERS = 16
BODY = {"model": "models:/iris/1", **split(SETOSA)}


@contextmanager
def api(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(api_command(host="127.0.0.1", port=port), env=child_environment(settings))
    try:
        until("the API is ready", lambda: is_ready(process, port), 60)
        yield process
    finally:
        process.kill()
        process.wait()


def is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


async def submit_until_it_dies(port: int, accepted: dict[str, UUID], asked: set[str], enough: threading.Event) -> None:
    """Each request has a key of its own; `enough` is set after a hundred answers."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        while True:
            key = new_id().hex
            asked.add(key)
            try:
                answer = await http.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                return
            assert answer.status_code == 202, answer.text
            accepted[key] = UUID(answer.json()["id"])
            if len(accepted) >= 100:
                enough.set()


@pytest.mark.parametrize("number", range(3))
async def test_what_was_answered_is_in_the_ledger(
    settings: Settings, ledger: Ledger, database_url: str, iris_model: str, number: int
) -> None:
    port, accepted, asked, enough = free_port(), dict[str, UUID](), set[str](), threading.Event()
    with api(settings, port) as process:
        load = [asyncio.create_task(submit_until_it_dies(port, accepted, asked, enough)) for _ in range(CALLERS)]
        await asyncio.to_thread(enough.wait, 60)
        process.kill()
        await asyncio.gather(*load)
    assert len(accepted) >= 100
    assert len(await ledger.get_many(list(accepted.values()))) == len(accepted)

    # Who was not answered asks again.
    with api(settings, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            for key in asked:
                answer = await http.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": key})
                assert answer.status_code == 202, answer.text
                assert UUID(answer.json()["id"]) == accepted.get(key, UUID(answer.json()["id"]))
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM job") == len(asked)
    await connection.close()
