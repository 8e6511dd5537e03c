"""`pyfunq dead`: jobs that cost too many worker processes, or too much time: shown, tried again, deleted."""

from typing import Annotated

import typer

from producer.options import JsonFlag
from producer.output import say, show_json, show_table
from pyfunq.client import Client
from pyfunq.environment import load_settings
from pyfunq.errors import InvalidInput
from pyfunq.job import JobStatus

app = typer.Typer(no_args_is_help=True, help="Dead jobs: those that cost too many worker processes, or too much time.")


@app.command("list")
def list_dead(
    before: Annotated[str | None, typer.Option(help="Only jobs older than this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List dead jobs, newest first."""
    with Client(load_settings()) as client:
        jobs = client.list(status=JobStatus.DEAD, before=before, limit=limit)
    if as_json:
        for job in jobs:
            show_json(job)
        return
    show_table(
        ("job", "model", "rows", "crashes", "ended", "reason"),
        ((j.id, j.model_uri, j.rows, j.crashes, j.finished_at, j.error and j.error.message) for j in jobs),
    )


@app.command("show")
def show(job: Annotated[str, typer.Argument(metavar="JOB")]) -> None:
    """Show a dead job as JSON, without its input."""
    with Client(load_settings()) as client:
        found = client.get(job)
    if found.status is not JobStatus.DEAD:
        raise InvalidInput(f"job {found.id} is not dead but {found.status}", field="job")
    show_json(found)


@app.command("requeue")
def requeue(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB...", help="Ids of dead jobs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Put dead jobs back with all their attempts; each runs alone only from its second attempt on."""
    if bool(jobs) == everything:
        raise InvalidInput("name dead jobs, or give --all", field="job")
    with Client(load_settings()) as client:
        count = 0
        if jobs:
            count = client.requeue_dead(jobs)
        else:
            last = None  # onwards from there: what dies again meanwhile is not put back again
            while page := client.list(status=JobStatus.DEAD, before=last, limit=1000):
                count += client.requeue_dead(page)
                last = page[-1]
    say(f"{count} put back")


@app.command("purge")
def purge(
    older_than: Annotated[float, typer.Option(min=0, help="Only those that ended more than these seconds ago.")] = 0.0,
) -> None:
    """Delete dead jobs with their inputs, for good."""
    with Client(load_settings()) as client:
        say(f"{client.purge_dead(older_than_seconds=older_than)} deleted")
