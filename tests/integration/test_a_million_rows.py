"""The hot statements in a ledger of a million jobs: they find theirs by index, and touch few pages."""

import json
import re
from functools import partial
from typing import Any

import asyncpg

from pyfunq.ids import new_id, oldest_id_at
from pyfunq.ledger import _SERVER_SETTINGS
from pyfunq.sql import queries

FINISHED, WAITING = 900_000, 100_000
LINES = ["interactive", "bulk", "interactive.first", "bulk.first"]
_FILL = """
WITH made AS MATERIALIZED (
    SELECT n, (lpad(to_hex(1000000000 + n), 32, '0'))::uuid AS id,
           (lpad(to_hex(2000000000 + n / 1000), 32, '0'))::uuid AS page,
           CASE WHEN n % 10 = 0 THEN $1::uuid END AS batch,
           CASE WHEN n > $2 THEN 'queued' ELSE 'succeeded' END AS status
    FROM generate_series(1, $3::integer) AS n
), kept AS (
    INSERT INTO job_input (id, input) SELECT id, '\\x7b7d' FROM made
)
INSERT INTO job (id, page_id, batch_id, batch_index, rows, max_attempts, attempt, status, queue, model_uri, worker_id,
                 input_format, input_bytes, result_format, result)
SELECT id, CASE WHEN status = 'queued' THEN page ELSE id END, batch, CASE WHEN batch IS NOT NULL THEN n END, 1, 3, 1,
       status, 'interactive', 'models:/a/' || n % 3, NULL, 'split', 2, 'json', '\\x5b305d'
FROM made
"""


async def pages_read(connection: asyncpg.Connection, query: str, *arguments: Any) -> int:
    """How many 8 KiB pages the statement looks at; it is undone."""
    transaction = connection.transaction()
    await transaction.start()
    explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {queries()[query]}"
    plan = json.loads(await connection.fetchval(explain, *arguments, timeout=30))[0]["Plan"]
    await transaction.rollback()
    assert not re.search(r'"Node Type": "Seq Scan",[^{}]*"Relation Name": "job(_input)?"', json.dumps(plan)), plan
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


async def test_no_hot_statement_reads_more_than_it_needs(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, server_settings=_SERVER_SETTINGS, timeout=60)
    batch = new_id()
    await connection.execute(_FILL, batch, FINISHED, FINISHED + WAITING, timeout=120)
    await connection.execute("ANALYZE job; ANALYZE job_input")
    some = await connection.fetch("SELECT id, page_id FROM job WHERE status = 'queued' LIMIT 1")
    done = [r["id"] for r in await connection.fetch("SELECT id FROM job WHERE status = 'succeeded' LIMIT 64")]
    waiting, page, worker = some[0]["id"], some[0]["page_id"], new_id()
    for mode in ("force_custom_plan", "force_generic_plan"):
        await connection.execute(f"SET plan_cache_mode = {mode}")
        read = partial(pages_read, connection)
        assert await read("claim", page, worker, 64, 10_000, 10**9) <= 2_000
        assert await read("claim", page, worker, 1_000, 10_000, 10**9) <= 25_000
        assert await read("claim", new_id(), worker, 64, 10_000, 10**9) <= 20
        finished = ("running", "succeeded", 1, "json", done, [1] * 64, [b"[]"] * 64)
        assert await read("finish_alike", worker, *finished) <= 300
        assert await read("get_results", done) <= 100
        assert await read("get_jobs", done) <= 200
        assert await read("final_among", done) <= 100
        assert await read("withdrawn", [waiting]) <= 20
        assert await read("get_input", waiting) <= 20
        assert await read("purge_dead", 0.0) <= 20
        assert await read("due_pages") <= 20
        assert await read("expire") <= 20
        assert await read("rescue_crashed", 20.0) <= 200, "once, past what the claims above left in the index"
        assert await read("rescue_crashed", 20.0) <= 20
        assert await read("count_queued", ["bulk"], 1_000_001) <= 20
        assert await read("count_queued", ["interactive"], 1_000) <= 500, "also past what the claims above left"
        assert await read("repage", [page], [new_id()]) <= 25_000
        assert await read("batch_results", batch, 1, 100, 10**9) <= 200
        assert await read("chunks_there", batch, 1, 500) <= 100
        # The queue's oldest message is that of its oldest page; in the others nothing waits.
        boundaries = [oldest_id_at(0), *[new_id()] * 3]
        for first in (False, True):
            assert await read("pages_without_message", LINES, boundaries, first) <= 60
    await connection.close()
