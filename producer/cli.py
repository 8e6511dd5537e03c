"""The command `pyfunq`: submit and follow jobs, run the programs, look after the models."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from producer import batch_commands, dead_commands, image, key_commands, model_commands, webhook_commands
from producer.options import FallbackFlag, JsonFlag, RetriesOption, TimeLimitOption, fallback
from producer.output import say, show_json, show_table
from producer.programs import (
    LANES,
    api_command,
    api_is_installed,
    beat_command,
    flower_command,
    flower_environment,
    thread_environment,
    worker_command,
    worker_processes,
)
from pyfunq import __version__, errors
from pyfunq.client import Client
from pyfunq.environment import child_environment, load_settings
from pyfunq.inputs import parse_json_input
from pyfunq.job import Job, JobStatus, Lane

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(batch_commands.app, name="batch")
app.add_typer(model_commands.app, name="models")
app.add_typer(dead_commands.app, name="dead")
app.add_typer(key_commands.app, name="keys")
app.add_typer(webhook_commands.app, name="webhooks")
app.command("image")(image.image)

EXIT_WAIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130
_EXIT_CODES: tuple[tuple[type[errors.PyFunQError], int], ...] = (
    (errors.WaitTimeout, EXIT_WAIT_TIMEOUT),
    (errors.JobFailed, 1),
    (errors.UnknownJob, 4),
    (errors.UnknownBatch, 4),
    (errors.UnknownKey, 4),
    (errors.ModelNotFound, 4),
    (errors.InvalidInput, 2),
    (errors.IdempotencyConflict, 2),
    (errors.InvalidModelURI, 2),
    (errors.ModelNotAllowed, 2),
    (errors.FileUnreadable, 2),
    (errors.InputNotAllowed, 2),
    (errors.SubmissionStopped, 1),
    (errors.NotConfigured, 5),
    (errors.BacklogFull, 5),
    (errors.LedgerUnavailable, 5),
    (errors.QueueUnavailable, 5),
    (errors.RegistryUnavailable, 5),
    (errors.InputUnavailable, 5),
)

TimeoutOption = Annotated[float | None, typer.Option(help="Seconds to wait; without it, as long as it takes.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


def main() -> None:
    """Exit codes: 0; 1 job or program failed; 2 bad input; 4 not found; 5 unavailable; 124 wait timeout; 130 Ctrl-C."""
    # A reader that goes away (`| head`) ends this program quietly.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        app(standalone_mode=True)
    except errors.PyFunQError as exc:
        say(f"error: {exc.message}")
        sys.exit(next((code for kind, code in _EXIT_CODES if isinstance(exc, kind)), 1))
    except KeyboardInterrupt:
        say("interrupted; what was accepted goes on")
        sys.exit(EXIT_INTERRUPTED)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"pyfunq {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version)] = False,
) -> None:
    """A queue for MLflow models: submit prediction jobs, follow them, run the workers."""


@app.command()
def submit(
    model: Annotated[str, typer.Argument(help="A model URI, such as models:/iris@champion.")],
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A JSON file, `-` for stdin, or the JSON itself: an object with dataframe_split, dataframe_records, "
            "instances or inputs, and params if the model takes any.",
        ),
    ],
    lane: Annotated[Lane, typer.Option(help="The queue that it waits in.")] = Lane.INTERACTIVE,
    expires_in: Annotated[float | None, typer.Option(help="Seconds after which it need not be predicted.")] = None,
    time_limit: TimeLimitOption = None,
    retries: RetriesOption = 0,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting the same under the same key again is the same job.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, and print the predictions.")] = False,
    timeout: TimeoutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit one job; prints its id."""
    settings = load_settings()
    parsed = parse_json_input(_read(inputs, settings.max_input_bytes), max_bytes=settings.max_input_bytes)
    with Client(settings) as client:
        job = client.submit(
            model,
            parsed,
            lane=lane,
            expires_in=expires_in,
            timeout=time_limit,
            retries=retries,
            idempotency_key=idempotency_key,
        )
        if not wait:
            show_json(job) if as_json else print(job.id)
            return
        try:
            _show_result(client, job, timeout, as_json)
        except KeyboardInterrupt:
            say(f"job {job.id} goes on")
            raise


@app.command()
def status(job: JobArgument, as_json: JsonFlag = False) -> None:
    """Show where a job is."""
    with Client(load_settings()) as client:
        _show_job(client.get(job), as_json)


@app.command()
def wait(job: JobArgument, timeout: TimeoutOption = None, as_json: JsonFlag = False) -> None:
    """Wait until a job is final; exit code 1 if it did not succeed."""
    with Client(load_settings()) as client:
        done = client.wait(job, timeout)
        _show_job(done, as_json)
        if done.status is not JobStatus.SUCCEEDED:
            raise typer.Exit(1)


@app.command()
def result(job: JobArgument, timeout: TimeoutOption = None, as_json: JsonFlag = False) -> None:
    """Wait for a job and print its predictions as JSON."""
    with Client(load_settings()) as client:
        _show_result(client, client.get(job), timeout, as_json)


@app.command()
def cancel(
    job: JobArgument,
    terminate: Annotated[bool, typer.Option("--terminate", help="Stop its call, if it is being predicted.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Withdraw a job that is not final."""
    with Client(load_settings()) as client:
        _show_job(client.cancel(job, terminate=terminate), as_json)


@app.command("list")
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model URI.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch.")] = None,
    before: Annotated[str | None, typer.Option(help="Only jobs older than this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    with Client(load_settings()) as client:
        jobs = client.list(status=status, model=model, batch=batch, before=before, limit=limit)
    if as_json:
        for job in jobs:
            show_json(job)
        return
    show_table(
        ("job", "status", "model", "version", "rows", "attempt", "created"),
        ((j.id, j.status, j.model_uri, j.model_version, j.rows, j.attempt, j.created_at) for j in jobs),
    )


@app.command()
def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if something is pending.")
    ] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print what is pending instead of applying it.")] = False,
) -> None:
    """Bring the database's tables up to this version."""
    import asyncio

    from pyfunq.migrate import migrate as apply
    from pyfunq.migrate import migration_state
    from pyfunq.sql import migrations

    database = load_settings().database
    if not check and not sql:
        done = asyncio.run(apply(database))
        say(f"applied {', '.join(done)}" if done else "nothing to do")
        return
    pending = asyncio.run(migration_state(database)).pending
    if sql:
        for name, text in migrations():
            if name in pending:
                print(f"-- {name}\n{text}")
        return
    say(f"pending: {', '.join(pending)}" if pending else "nothing to do")
    raise typer.Exit(1 if pending else 0)


_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_PASS_ON)
def worker(
    context: typer.Context,
    concurrency: Annotated[int | None, typer.Option("-c", "--concurrency", help="Processes.")] = None,
    lanes: Annotated[
        str, typer.Option("-Q", "--queues", help="Lanes, and queues of models' own, the preferred one first.")
    ] = LANES,
    fallback_latest: FallbackFlag = False,
) -> None:
    """Run a worker; further options go to `celery worker`."""
    settings = load_settings(**fallback(fallback_latest))
    processes = concurrency or worker_processes(settings)
    command = worker_command(concurrency=processes, lanes=lanes, extra=context.args)
    _become(command, {**child_environment(settings), **thread_environment(processes)})


@app.command(context_settings=_PASS_ON)
def beat(context: typer.Context) -> None:
    """Run the beat, which begins the registry watch and rescue; further options go to `celery beat`."""
    settings = load_settings()
    settings.home.mkdir(parents=True, exist_ok=True)
    _become([*beat_command(settings.home), *context.args], child_environment(settings))


@app.command(context_settings=_PASS_ON)
def flower(
    context: typer.Context,
    address: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 5555,
) -> None:
    """Run Flower, with a password; further options go to `celery flower`."""
    settings = load_settings()
    environment, generated = flower_environment(settings)
    if generated:
        say(f"Flower: user {settings.flower_user}, password {generated} (set PYFUNQ_FLOWER_PASSWORD to choose one)")
    command = flower_command(address=address, port=port, extra=context.args)
    _become(command, {**child_environment(settings), **environment})


@app.command()
def api(
    host: Annotated[str, typer.Option(help="Where it listens; without any API key 127.0.0.1 alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    processes: Annotated[int, typer.Option(min=1, help="So many share the port, each with limits of its own.")] = 1,
) -> None:
    """Run the HTTP API."""
    if not api_is_installed():
        raise errors.NotConfigured("the HTTP API needs packages that are not here; install pyfunq[api]")
    settings = load_settings()
    # What it needs, said by name before the process becomes another.
    environment = {
        **os.environ,
        "PYFUNQ_HOME": str(settings.home),
        "PYFUNQ_DATABASE_URL": settings.database,
        "PYFUNQ_REDIS_URL": settings.redis,
    }
    _become(api_command(host=host, port=port, processes=processes), environment)


@app.command()
def up(
    logs: Annotated[bool, typer.Option("--logs", help="Show the components' logs here too.")] = False,
    concurrency: Annotated[int | None, typer.Option("-c", "--concurrency", help="Worker processes.")] = None,
    fallback_latest: FallbackFlag = False,
) -> None:
    """Run everything on this machine: what is not configured by environment is embedded. Ctrl-C stops it."""
    from producer.up import run_up

    run_up(logs=logs, concurrency=concurrency, **fallback(fallback_latest))


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
) -> None:
    """Start everything, train and register two models, score 100,150 rows and swap a version on the way."""
    from producer.demo import run_demo

    run_demo(keep=keep)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Check Postgres, Redis, MLflow, the workers and the clocks; says what to do about each failure."""
    from producer.doctor import run_doctor

    if not run_doctor(as_json=as_json):
        raise typer.Exit(1)


def _become(command: list[str], environment: dict[str, str]) -> None:
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)  # noqa: S606


def _read(source: str, max_bytes: int) -> bytes:
    """INPUT's bytes, read no further than what is too large anyway."""
    if source == "-":
        return sys.stdin.buffer.read(max_bytes + 1)
    if source.lstrip().startswith("{"):
        return source.encode()
    try:
        with Path(source).open("rb") as file:
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a file name"
        raise errors.FileUnreadable(f"{source[:200]}: {reason}") from exc


def _show_job(job: Job, as_json: bool) -> None:
    if as_json:
        show_json(job)
        return
    version = f"{job.model_name}/{job.model_version}" if job.model_version else None
    facts: dict[str, Any] = {
        "job": job.id,
        "status": job.status,
        "model": job.model_uri,
        "version": version,
        "rows": job.rows,
        "lane": job.lane,
        "attempt": job.attempt,
        "crashes": f"{job.crashes} of {job.max_attempts}" if job.crashes else None,
        "failures": f"{job.failures}, {job.retries} tried again" if job.failures else None,
        "created": job.created_at,
        "started": job.started_at,
        "finished": job.finished_at,
        "worker": job.worker,
        "error": f"{job.error.code}: {job.error.message}" if job.error else None,
    }
    show_table(("", ""), ((k, v) for k, v in facts.items() if v is not None))


def _show_result(client: Client, job: Job, timeout: float | None, as_json: bool) -> None:
    predictions = _jsonable(client.result(job, timeout))
    if not as_json:
        show_json(predictions)
        return
    now = client.get(job.id)
    show_json({"job": now.id, "model_version": now.model_version, "predictions": predictions})


def _jsonable(value: Any) -> Any:
    """Predictions of an Arrow job as what a JSON job would have."""
    if isinstance(value, (list, dict, str, int, float, bool, type(None))):
        return value
    from producer.batch_commands import records

    return records(value)
