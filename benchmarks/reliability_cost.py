"""What reliability costs: end-to-end throughput with heartbeats, fencing, limits and rescue against the same without.

`python -m benchmarks.reliability_cost [--rounds 7] [--jobs 150000]` starts servers of its own (fsync on) and, for each
of the two, a worker of two processes with a database of its own; then it takes them in turn. Who does not have its turn
is stopped (SIGSTOP), so that its heartbeats cost the other nothing.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg

from benchmarks.models import FEATURES, LOGISTIC, random_rows, register, split_inputs
from benchmarks.pyfunq_side import OPEN
from benchmarks.servers import Worker, embedded_servers, new_ledger, paused
from pyfunq.client import AsyncClient

MODEL = "models:/logistic/1"
NEVER = "1000000"
OFF = dict.fromkeys(("PYFUNQ_HEARTBEAT_SECONDS", "PYFUNQ_RESCUE_SECONDS", "PYFUNQ_STALE_SECONDS"), NEVER)


class Side(Worker):
    """One of the two that are compared: a database, a Redis database, a worker and, where it is reliable, a beat."""

    async def jobs_a_second(self, inputs: Sequence[Any]) -> float:
        """From the first submit to the last result's commit."""
        connection = await asyncpg.connect(self.settings.database, server_settings={"enable_seqscan": "off"})
        async with AsyncClient(self.settings) as client:
            begun = time.monotonic()
            for at in range(0, len(inputs), 1000):
                await client.submit_many(MODEL, inputs[at : at + 1000])
            while await connection.fetchval(OPEN):  # noqa: ASYNC110  nothing tells of the last of many jobs
                await asyncio.sleep(0.02)
            seconds = time.monotonic() - begun
        succeeded = await connection.fetchval("SELECT count(*) FROM job WHERE status = 'succeeded'")
        if succeeded != len(inputs):
            raise SystemExit(f"{self.name}: {succeeded} of {len(inputs)} jobs succeeded")
        await connection.execute("TRUNCATE job, job_input")
        await connection.close()
        return len(inputs) / seconds


@contextmanager
def sides() -> Iterator[list[Side]]:
    with embedded_servers() as servers:
        made: list[Side] = []
        try:
            register(servers.mlflow, LOGISTIC, servers.home / "models", "logistic")
            for number, (name, app, more) in enumerate(
                (("reliable", "worker.app", {}), ("unguarded", "benchmarks.unguarded", OFF))
            ):
                url = asyncio.run(new_ledger(servers.database, name))
                made.append(Side(name, servers.settings(url, number), app, more))
            yield made
        finally:
            for side in made:
                side.stop()


async def measure(both: list[Side], rounds: int, jobs: int) -> dict[str, list[float]]:
    inputs = split_inputs(random_rows(jobs, seed=1))
    figures: dict[str, list[float]] = {side.name: [] for side in both}
    for side in both:
        await side.ready()
        await side.jobs_a_second(inputs[: jobs // 2])
    for number in range(rounds):
        for side, other in (both, both[::-1]) if number % 2 == 0 else (both[::-1], both):
            with paused(other.programs):
                figures[side.name].append(await side.jobs_a_second(inputs))
        print(f"round {number + 1}: " + ", ".join(f"{n} {f[-1]:,.0f} jobs/s" for n, f in figures.items()), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=150_000)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.jobs:,} single-row jobs a round, {FEATURES} features, pages of 1,000")
    with sides() as both:
        figures = asyncio.run(measure(both, arguments.rounds, arguments.jobs))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios = [a / b for a, b in zip(figures["reliable"], figures["unguarded"], strict=True)]
    for name, median in medians.items():
        print(f"median {name}: {median:,.0f} jobs/s")
    print(f"ratio of the medians: {medians['reliable'] / medians['unguarded']:.3f}")
    print(f"ratio of each round: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
