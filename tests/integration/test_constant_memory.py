"""Producers and readers of backlogs hold the same memory whatever the backlog's size."""

import subprocess
import sys
from pathlib import Path

import asyncpg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfunq.ids import new_id
from pyfunq.settings import Settings
from worker.predictions import encode_output

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")

MIB = 1 << 20
PEAK = """
def peak():
    # Not ru_maxrss, in which the memory of the process that forked this one counts.
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
"""
SUBMIT = """
import sys
from pyfunq import Client
with Client(database_url=sys.argv[1], redis_url=sys.argv[2], input_roots=(sys.argv[3].rsplit("/", 1)[0],)) as client:
    batch = client.submit_batch("models:/any/1", sys.argv[3], by_reference=sys.argv[4] == "True", chunk_rows=10_000)
print(batch.rows, peak())
"""
READ = """
import sys
from pyfunq import Client
with Client(database_url=sys.argv[1], redis_url=sys.argv[2]) as client:
    rows = sum(len(frame) for frame in client.get_batch(sys.argv[3]).results())
print(rows, peak())
"""


def run(settings: Settings, program: str, *arguments: object) -> tuple[int, int]:
    """The number of rows, and the peak of the process's memory in bytes."""
    command = [sys.executable, "-c", PEAK + program, settings.database, settings.redis, *map(str, arguments)]
    rows, peak = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    return int(rows), int(peak)


def numbers(path: Path, rows: int) -> Path:
    """20 columns of noise: 160 bytes a row."""
    noise = np.random.default_rng(0)
    names = [f"f{i}" for i in range(20)]
    with pq.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in names]), use_dictionary=False) as writer:
        for _ in range(0, rows, 50_000):
            writer.write_table(pa.table(dict(zip(names, noise.normal(size=(20, 50_000)), strict=True))))
    return path


@pytest.mark.parametrize("by_reference", [False, True], ids=["by value", "by reference"])
def test_a_producer(settings: Settings, tmp_path: Path, by_reference: bool) -> None:
    peaks = []
    for rows in (300_000, 1_000_000):  # 48 and 160 MB; what is in flight at once is bounded, and reached by the first
        submitted, peak = run(settings, SUBMIT, numbers(tmp_path / f"{rows}.parquet", rows), by_reference)
        assert submitted == rows
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 56 * MIB, peaks


async def test_a_reader(settings: Settings, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    _, payload = encode_output(np.random.default_rng(0).normal(size=10_000), arrow=True)
    peaks = []
    for jobs in (200, 1200):  # 16 and 96 MB
        batch = new_id()
        await connection.execute(
            "INSERT INTO batch (id, model_uri, source, submitted_at) VALUES ($1, 'x', '', now())", batch
        )
        await connection.execute(
            """INSERT INTO job (id, page_id, batch_id, batch_index, rows, max_attempts, status, queue, model_uri,
                                input_format, input_bytes, result_format, result)
               SELECT gen_random_uuid(), $1, $1, n, 10000, 3, 'succeeded', 'bulk', 'x', 'arrow', 0, 'arrow', $2
               FROM generate_series(0, $3::integer - 1) AS n""",
            batch,
            payload,
            jobs,
        )
        rows, peak = run(settings, READ, batch)
        assert rows == jobs * 10_000
        peaks.append(peak)
    await connection.close()
    assert peaks[1] - peaks[0] < 40 * MIB, peaks
