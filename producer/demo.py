"""`pyfunq demo`: the whole main job in a minute, on servers, models and data of its own."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson

from producer.output import data, progress, say, show_table
from producer.stack import Stack, running_stack
from producer.up import report_component, stop_signals
from pyfunq.client import AsyncClient
from pyfunq.environment import read_settings
from pyfunq.errors import PyFunQError, ServerFailed
from pyfunq.job import Job, JobStatus
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings

if TYPE_CHECKING:
    from producer.demo_models import DemoModels

IRIS_URI = "models:/iris@champion"
BACKLOG_URI = "models:/diabetes/Production"
BACKLOG_ROWS = 100_000
CHUNK_ROWS = 500
WATCH_SECONDS = 1.0
_SHOWN = 5
_SWAP_SECONDS = 45.0
_TRICKLE_SECONDS = 0.1
_KEPT_FOR_AFTER = 40
_FINISH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Score:
    """One of the two workloads as the table shows it; latencies in milliseconds from submit to result."""

    name: str
    jobs: Sequence[Job]
    seconds: float
    latencies_ms: Sequence[float]

    @property
    def failures(self) -> int:
        return sum(job.status is not JobStatus.SUCCEEDED for job in self.jobs)

    def row(self) -> tuple[str, ...]:
        rows = sum(job.rows for job in self.jobs)
        ordered = sorted(self.latencies_ms)
        p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        versions: dict[str, int] = {}
        for job in self.jobs:
            version = f"v{job.model_version}" if job.model_version else "none"
            versions[version] = versions.get(version, 0) + 1
        return (
            *(self.name, f"{len(self.jobs):,}", f"{rows:,}", f"{self.seconds:.1f}"),
            *(
                f"{len(self.jobs) / self.seconds:,.0f}",
                f"{rows / self.seconds:,.0f}",
                f"{p50:,.0f}",
                f"{p99:,.0f}",
            ),
            ", ".join(f"{v}: {n:,}" for v, n in sorted(versions.items())),
            str(self.failures),
        )


def run_demo(*, keep: bool) -> None:
    """Raises ServerFailed, naming the logs, where something does not work or a job fails."""
    base = read_settings()
    settings = Settings.model_validate(
        {
            **base.model_dump(),
            "home": base.home / "demo",
            "registry_watch_seconds": WATCH_SECONDS,
            **dict.fromkeys(("database_url", "redis_url", "mlflow_tracking_uri")),
        }
    )
    with stop_signals() as stop, running_stack(settings, report_component, fresh=True) as stack:
        stop.kill_on_second(stack)
        try:
            scores = asyncio.run(_score_both(stack))
            asyncio.run(_show(stack, scores))
        except Exception as exc:  # MLflow, scikit-learn and the servers raise what they like; the watcher gets a line
            stack.check()
            raise ServerFailed(f"{_reason(exc)}; the logs are in {stack.state.logs}") from exc
        if keep:
            say(f"everything is left running; Ctrl-C stops it; in other terminals: export PYFUNQ_HOME={settings.home}")
            while not stop.wait(0.5):
                stack.check()
    if failures := sum(score.failures for score in scores):
        raise ServerFailed(f"{failures} jobs did not succeed; the logs are in {settings.home / 'logs'}")


def _reason(exc: Exception) -> str:
    if isinstance(exc, PyFunQError):
        return exc.message
    return f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"


async def _score_both(stack: Stack) -> list[Score]:
    from producer.demo_models import DIABETES, IRIS, DemoModels, write_backlog

    models = DemoModels(stack.settings.mlflow)
    models.iris_v1()
    models.diabetes_v1()
    for name in (IRIS, DIABETES):
        models.promote(name, 1)
    say(f"trained and registered {IRIS} and {DIABETES}: version 1 of each is @champion and Production")
    path = stack.settings.home / "backlog.parquet"
    write_backlog(path, BACKLOG_ROWS)
    async with AsyncClient(stack.settings) as client:
        return [await _score_iris(client), await _score_backlog(client, stack.settings, models, path)]


async def _score_iris(client: AsyncClient) -> Score:
    """Every iris row as a job of its own, all at once."""
    from producer.demo_models import iris

    x, _ = iris()
    columns = list(x.columns)
    started = time.perf_counter()
    with progress(f"{IRIS_URI}, a job a row", len(x), "jobs") as advance:
        done = 0

        async def score(row: list[float]) -> tuple[Job, float]:
            nonlocal done
            begun = time.perf_counter()
            job = await client.submit(IRIS_URI, {"dataframe_split": {"columns": columns, "data": [row]}})
            job = await client.wait(job, _FINISH_SECONDS)
            done += 1
            advance(done)
            return job, (time.perf_counter() - begun) * 1000

        ends = await asyncio.gather(*(score(row) for row in x.to_numpy().tolist()))
    seconds = time.perf_counter() - started
    return Score("iris rows", [job for job, _ in ends], seconds, [ms for _, ms in ends])


async def _score_backlog(client: AsyncClient, settings: Settings, models: "DemoModels", path: Path) -> Score:
    """The file as jobs of 500 rows; version 2 is promoted when half of them are submitted."""
    swap = _Swap(settings, models)
    started = time.perf_counter()
    with progress(f"{BACKLOG_URI}, submitted", BACKLOG_ROWS, "rows") as advance:
        batch = await client.submit_batch(
            BACKLOG_URI, _with_swap(path, swap), chunk_rows=CHUNK_ROWS, on_progress=advance
        )
    with progress(f"{BACKLOG_URI}, predicted", BACKLOG_ROWS, "rows") as advance:
        await client.wait_batch(batch, _FINISH_SECONDS, on_progress=lambda now: advance(now.rows_finished))
    seconds = time.perf_counter() - started
    jobs = await client.list(batch=batch, limit=1000)
    latencies = [(j.finished_at - j.created_at).total_seconds() * 1000 for j in jobs if j.finished_at]
    say(
        f"promoted version 2 half-way; its first job was submitted within {swap.seconds:.1f} s of the promotion, and "
        f"the backlog was fed slowly for the {swap.slow_seconds:.1f} s of training, promoting and switching"
    )
    return Score("backlog", jobs, seconds, latencies)


class _Swap:
    """Trains and promotes version 2 beside the backlog, and notes when the registry watch has seen it."""

    def __init__(self, settings: Settings, models: "DemoModels") -> None:
        self._settings = settings
        self._models = models
        self._thread = threading.Thread(target=self._run, name="swap")
        self._failure: BaseException | None = None
        self.seconds = 0.0
        """From the promotion to when the queue uses version 2."""
        self.slow_seconds = 0.0

    def start(self) -> None:
        self._begun = time.perf_counter()
        self._thread.start()

    def pending(self) -> bool:
        """Raises what went wrong."""
        if self._thread.is_alive():
            return True
        if self._failure is not None:
            raise self._failure
        self.slow_seconds = self.slow_seconds or time.perf_counter() - self._begun
        return False

    def _run(self) -> None:
        from producer.demo_models import DIABETES

        try:
            self._models.diabetes_v2()
            self._models.promote(DIABETES, 2)
            promoted = time.perf_counter()
            asyncio.run(self._switched())
            self.seconds = time.perf_counter() - promoted
        except BaseException as exc:  # raised again where the backlog is read
            self._failure = exc

    async def _switched(self) -> None:
        async with Ledger.open(self._settings.database, max_connections=1) as ledger:
            give_up = time.monotonic() + _SWAP_SECONDS
            while time.monotonic() < give_up:
                now = await ledger.resolution(BACKLOG_URI)
                if now is not None and now.version.version == "2":
                    return
                await asyncio.sleep(0.05)
        raise ServerFailed(f"the registry watch did not see version 2 within {_SWAP_SECONDS:g} s")


def _with_swap(path: Path, swap: _Swap) -> Iterator[Any]:
    """The file's chunks; from the middle on slowly until the queue uses version 2, the last of them only then."""
    import pyarrow.parquet as pq

    chunks = BACKLOG_ROWS // CHUNK_ROWS
    with pq.ParquetFile(path) as file:
        for i, chunk in enumerate(file.iter_batches(batch_size=CHUNK_ROWS)):
            if i == chunks // 2:
                swap.start()
            while i >= chunks // 2 and swap.pending():
                time.sleep(_TRICKLE_SECONDS)
                if i < chunks - _KEPT_FOR_AFTER:
                    break
            yield chunk


async def _show(stack: Stack, scores: list[Score]) -> None:
    show_table(
        (
            "",
            "jobs",
            "rows",
            "seconds",
            "jobs/s",
            "rows/s",
            "p50 ms",
            "p99 ms",
            "by version",
            "failures",
        ),
        (score.row() for score in scores),
    )
    data.print(f"failures: {sum(score.failures for score in scores)}\n")
    connection = await asyncpg.connect(stack.settings.database)
    try:
        rows = await connection.fetch(
            "SELECT inputs, prediction, confidence_score, model_version FROM model_predictions"
            " WHERE model_name = 'iris' ORDER BY md5(job_id::text) LIMIT $1",
            _SHOWN,
        )
    finally:
        await connection.close()
    inputs = [orjson.loads(r["inputs"]) for r in rows]
    show_table(
        (*inputs[0]["columns"], "prediction", "confidence", "version"),
        (
            (
                *i["data"][0],
                orjson.loads(r["prediction"])[0],
                f"{r['confidence_score']:.3f}",
                r["model_version"],
            )
            for i, r in zip(inputs, rows, strict=True)
        ),
    )
    data.print(f"\nFlower     {stack.flower_url}   (user and password: {stack.flower_login})")
    if stack.api_url:
        data.print(f"HTTP API   {stack.api_url}   (documents: {stack.api_url}/docs)")
    data.print(f"MLflow UI  {stack.settings.mlflow}")
