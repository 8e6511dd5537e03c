"""Migrations: from nothing, twice, at once, and when somebody changed one."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import asyncpg
import pytest

from pyfunq import migrate as module
from pyfunq.errors import MigrationNeeded
from pyfunq.migrate import MigrationChanged, migrate, migration_state, require_current
from pyfunq.sql import migrations
from tests.conftest import Servers, database_named

_numbers = count(1)


@pytest.fixture
async def empty_url(servers: Servers) -> AsyncIterator[str]:
    name = f"empty_{next(_numbers)}"
    admin = await asyncpg.connect(database_named(servers.database, "postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    yield database_named(servers.database, name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


NAMES = tuple(name for name, _ in migrations())


async def test_from_nothing_to_current_once(empty_url: str) -> None:
    assert (await migration_state(empty_url)).pending == NAMES
    with pytest.raises(MigrationNeeded, match=r"0001.*pyfunq migrate"):
        await require_current(empty_url)
    assert await migrate(empty_url) == NAMES
    assert await migrate(empty_url) == ()
    await require_current(empty_url)


async def test_many_hosts_at_once_apply_each_once(empty_url: str) -> None:
    done = await asyncio.gather(*(migrate(empty_url) for _ in range(6)))
    assert sorted(done) == [()] * 5 + [NAMES]


async def test_one_that_fails_leaves_nothing_behind(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*migrations(), ("9999_broken.sql", "CREATE TABLE half (a int); SELECT no_such_function();"))
    monkeypatch.setattr(module, "migrations", lambda: broken)
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await migrate(empty_url)
    connection = await asyncpg.connect(empty_url)
    assert await connection.fetchval("SELECT to_regclass('half')") is None
    await connection.close()
    assert (await migration_state(empty_url)).applied == NAMES


async def test_inputs_move_to_a_table_of_their_own(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuple((name, text) for name, text in migrations() if name < "0008")
    monkeypatch.setattr(module, "migrations", lambda: before)
    await migrate(empty_url)
    monkeypatch.undo()
    connection = await asyncpg.connect(empty_url)
    await connection.execute(
        """INSERT INTO job (id, page_id, rows, max_attempts, status, queue, model_uri, result_format, result,
                            input_format, input, params)
           SELECT gen_random_uuid(), gen_random_uuid(), n, 3, CASE WHEN n % 2 = 0 THEN 'succeeded' ELSE 'queued' END,
                  'bulk', 'models:/a/1', 'json', '[1]', 'split',
                  convert_to(json_build_object('n', n, 's', repeat('x', n * 3))::text, 'UTF8'),
                  CASE WHEN n % 3 = 0 THEN convert_to(json_build_object('k', n)::text, 'UTF8') END
           FROM generate_series(1, 1000) AS n"""
    )
    kept = "SELECT id, input, params FROM {} ORDER BY id"
    inputs = await connection.fetch(kept.format("job"))
    predictions = await connection.fetch("SELECT * FROM model_predictions ORDER BY job_id")
    assert await migrate(empty_url)
    assert await connection.fetch(kept.format("job_input")) == inputs
    assert await connection.fetch("SELECT * FROM model_predictions ORDER BY job_id") == predictions
    sizes = "SELECT count(*) FROM job JOIN job_input USING (id) WHERE input_bytes = octet_length(input)"
    assert await connection.fetchval(sizes) == len(predictions) * 2 == 1000
    assert await connection.fetchval("SELECT pg_table_size('job')") < 500_000, "the inputs' 1.5 MB are gone from it"
    await connection.close()


async def test_one_outside_a_transaction(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(empty_url)
    text = "-- no transaction\nCREATE INDEX CONCURRENTLY job_test ON job (created_at);"
    monkeypatch.setattr(module, "migrations", lambda: (*migrations(), ("9999_index.sql", text)))
    assert await migrate(empty_url) == ("9999_index.sql",)


async def test_a_changed_migration_is_refused(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(empty_url)
    changed: Any = tuple((name, text + "\n-- changed") for name, text in migrations())
    monkeypatch.setattr(module, "migrations", lambda: changed)
    with pytest.raises(MigrationChanged, match="0001"):
        await migrate(empty_url)
