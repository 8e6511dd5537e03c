"""Plans that Postgres keeps from when the ledger was small: none of them reads all of it once it is large."""

import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from pyfunq.ledger import _SERVER_SETTINGS
from pyfunq.sql import queries

_GROWING = ("job", "job_input", "job_note")
_WHOLE = {
    ("count_states", "job_dead"),
    ("count_states", "job_running"),
    ("list_jobs", "job_pkey"),
    ("pages_without_message", "job_queued_crashed"),
    ("purge_dead", "job_dead"),
    ("queue_state", "job_queued_model"),
    ("repage", "job_queued_page"),
    ("requeue_dead", "job_dead"),
    ("rescue_crashed", "job_running"),
}
"""Statements that read an index from its end until they have enough, or that are about everything in it."""
_FILL = """
WITH made AS MATERIALIZED (
    SELECT gen_random_uuid() AS id FROM generate_series(1, $1::integer)
), kept AS (
    INSERT INTO job_input (id, input) SELECT id, '\\x7b7d' FROM made
)
INSERT INTO job (id, page_id, rows, max_attempts, attempt, status, queue, model_uri, input_format, input_bytes)
SELECT id, id, 1, 3, 1, 'succeeded', 'interactive', 'models:/a/1', 'split', 2 FROM made
"""


def read_whole(plan: dict[str, Any]) -> Iterator[str]:
    """The indexes and tables that it reads from one end to the other, of those that grow."""
    if plan.get("Relation Name") in _GROWING and "Index Cond" not in plan and plan["Node Type"] != "ModifyTable":
        yield plan.get("Index Name") or plan["Relation Name"]
    for child in plan.get("Plans", []):
        yield from read_whole(child)


async def kept_plan(connection: asyncpg.Connection, query: str) -> dict[str, Any]:
    await connection.execute(f"PREPARE hot AS {query}")
    count = "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'hot'"
    nulls = ", ".join(["NULL"] * await connection.fetchval(count))
    explain = f"EXPLAIN (FORMAT JSON) EXECUTE hot{f'({nulls})' if nulls else ''}"
    plan: dict[str, Any] = json.loads(await connection.fetchval(explain))[0]["Plan"]
    await connection.execute("DEALLOCATE hot")
    return plan


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("jobs", [0, 1, 30, 300, 1_000, 5_000])
async def test_no_kept_plan_reads_the_whole_ledger(database_url: str, jobs: int, analyzed: bool) -> None:
    connection = await asyncpg.connect(database_url, server_settings=_SERVER_SETTINGS)
    await connection.execute(_FILL, jobs)
    if analyzed:
        await connection.execute("ANALYZE")
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    plans = {name: await kept_plan(connection, query) for name, query in queries().items()}
    await connection.close()
    assert {(name, what) for name, plan in plans.items() for what in read_whole(plan)} <= _WHOLE
    assert set(read_whole(plans["purge_dead"])) == {"job_dead"}, "what reads an index from its end is seen to"
