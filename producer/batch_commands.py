"""`pyfunq batch`: backlogs from files, and their results."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import orjson
import typer

from producer.options import JsonFlag, RetriesOption, TimeLimitOption
from producer.output import progress, say, show_json, show_table
from pyfunq import errors
from pyfunq.batches import stopped_text
from pyfunq.client import Client
from pyfunq.environment import load_settings
from pyfunq.frames import as_frame
from pyfunq.job import Batch, JobStatus, Lane

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(no_args_is_help=True, help="Backlogs: many rows from a file, as jobs of some thousand rows each.")

BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="A batch's id.")]


WaitFlag = Annotated[bool, typer.Option("--wait", help="Wait until all of it is final.")]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", help="Wait, and write the predictions here: .parquet, .csv or .jsonl.")
]


@app.command("submit")
def submit(
    model: Annotated[str, typer.Argument(help="A model URI, such as models:/iris@champion.")],
    file: Annotated[
        str,
        typer.Argument(help="A .parquet, .csv or .jsonl file; by reference also a folder of .parquet files, or a URL."),
    ],
    chunk_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows a job; by default 10,000, or fewer of a slow model.")
    ] = None,
    by_reference: Annotated[
        bool, typer.Option("--by-reference", help="The workers read the rows where they are (PYFUNQ_INPUT_ROOTS).")
    ] = False,
    lane: Annotated[Lane, typer.Option(help="The queue that its jobs wait in.")] = Lane.BULK,
    time_limit: TimeLimitOption = None,
    retries: RetriesOption = 0,
    wait: WaitFlag = False,
    output: OutputOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit a file's rows; prints the batch's id."""
    if output is not None:
        _writer_for(output)
    with Client(load_settings()) as client:
        with _submitting(client, file) as opened, progress("submitted", None, "rows") as advance:
            batch = client.submit_batch(
                model,
                file,
                chunk_rows=chunk_rows,
                lane=lane,
                timeout=time_limit,
                retries=retries,
                by_reference=by_reference,
                on_open=opened.append,
                on_progress=advance,
            )
        _follow(client, batch, wait, output, as_json)


@app.command("resume")
def resume(
    batch: BatchArgument,
    file: Annotated[str, typer.Argument(help="The file that the batch is from, unchanged.")],
    wait: WaitFlag = False,
    output: OutputOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Submit what is missing of a batch whose submission stopped, with the options that it was begun with."""
    if output is not None:
        _writer_for(output)
    with Client(load_settings()) as client:
        found = client.get_batch(batch)
        with _submitting(client, file) as opened, progress("submitted", found.source_rows, "rows") as advance:
            found = client.submit_batch(found.model_uri, file, resume=found, on_open=opened.append, on_progress=advance)
        _follow(client, found, wait, output, as_json)


@contextmanager
def _submitting(client: Client, file: str) -> Iterator[list[UUID]]:
    """Takes the id of the batch that is being submitted; says how to go on with it when that stops."""
    opened: list[UUID] = []
    try:
        yield opened
    except (KeyboardInterrupt, errors.PyFunQError):
        if opened:
            with suppress(errors.PyFunQError):
                batch = client.get_batch(opened[0])
                if batch.is_resumable and not batch.is_final:
                    rest = f"pyfunq batch resume {batch.id} {shlex.quote(file)}"
                    say(f"{batch.rows:,} rows were accepted and go on; the rest: {rest}")
        raise


def _follow(client: Client, batch: Batch, wait: bool, output: Path | None, as_json: bool) -> None:
    if not wait and output is None:
        show_json(batch) if as_json else print(batch.id)
        return
    try:
        batch = _wait(client, batch)
    except KeyboardInterrupt:
        say(f"batch {batch.id} goes on")
        raise
    if output is not None:
        _write_results(client, batch, output)
    _show(batch, as_json)
    _exit_by(batch)


@app.command("status")
def status(batch: BatchArgument, as_json: JsonFlag = False) -> None:
    """Show how far a batch is."""
    with Client(load_settings()) as client:
        _show(client.get_batch(batch), as_json)


@app.command("wait")
def wait(
    batch: BatchArgument,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Wait until a batch is final; exit code 1 if a job of it did not succeed."""
    with Client(load_settings()) as client:
        done = _wait(client, client.get_batch(batch), timeout)
        _show(done, as_json)
        _exit_by(done)


@app.command("results")
def results(
    batch: BatchArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A .parquet, .csv or .jsonl file; without it JSON lines on stdout."),
    ] = None,
) -> None:
    """Write a finished batch's predictions, in the order of its input."""
    if output is not None:
        _writer_for(output)
    with Client(load_settings()) as client:
        found = client.get_batch(batch)
        if output is not None:
            _write_results(client, found, output)
            return
        for frame in _frames(client, found):
            sys.stdout.write(_json_lines(frame))


@app.command("cancel")
def cancel(batch: BatchArgument, as_json: JsonFlag = False) -> None:
    """Withdraw what is not final of a batch."""
    with Client(load_settings()) as client:
        _show(client.cancel_batch(batch), as_json)


def _wait(client: Client, batch: Batch, timeout: float | None = None) -> Batch:
    with progress("predicted", batch.rows, "rows") as advance:
        return client.wait_batch(batch, timeout, on_progress=lambda now: advance(now.rows_finished, now.rows))


def _show(batch: Batch, as_json: bool) -> None:
    if as_json:
        show_json(batch)
        return
    counts = ", ".join(f"{n} {status}" for status, n in sorted(batch.counts.items()))
    facts = {
        "batch": batch.id,
        "model": batch.model_uri,
        "jobs": f"{batch.jobs} ({counts})" if counts else "0",
        "rows": f"{batch.rows:,} ({batch.rows_finished:,} finished)",
        "created": batch.created_at,
        "submission": stopped_text(batch) if batch.is_stopped else None,
        "error": batch.error and f"{batch.error.code}: {batch.error.message}",
    }
    show_table(("", ""), ((k, v) for k, v in facts.items() if v is not None))


def _exit_by(batch: Batch) -> None:
    if batch.counts.get(JobStatus.SUCCEEDED, 0) != batch.jobs:
        raise typer.Exit(1)


def _frames(client: Client, batch: Batch) -> "Iterator[pd.DataFrame]":
    """Rows of a job without a result are nulls; each such job is named on stderr."""
    return client.batch_frames(batch, on_missing=lambda part: say(f"warning: {part.error and part.error.message}"))


def records(result: Any) -> list[Any]:
    """A job's predictions as JSON values, one a row: values, or objects where the model gives several columns."""
    frame = as_frame(result)
    rows: list[Any] = orjson.loads(frame.to_json(orient="records", date_format="iso", double_precision=15))
    return [row["prediction"] for row in rows] if list(frame.columns) == ["prediction"] else rows


def _json_lines(frame: "pd.DataFrame") -> str:
    return str(frame.to_json(orient="records", lines=True, date_format="iso", double_precision=15))


def _writer_for(output: Path) -> str:
    suffix = output.suffix.lower()
    if suffix not in (".parquet", ".csv", ".jsonl"):
        raise errors.InvalidInput(f"{output.name}: the output ends in .parquet, .csv or .jsonl", field="output")
    if not output.absolute().parent.is_dir():
        raise errors.FileUnreadable(f"{output.parent}: no such directory")
    return suffix


def _write_results(client: Client, batch: Batch, output: Path) -> None:
    """Complete or absent: written beside its place, then moved."""
    unfinished = output.with_name(f".{output.name}.part")
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    try:
        rows = writers[_writer_for(output)](_frames(client, batch), unfinished)
        unfinished.replace(output)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()
    say(f"{rows:,} rows in {output}")


def _write_parquet(frames: Iterator["pd.DataFrame"], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    writer: Any = None
    try:
        for frame in frames:
            table = pa.Table.from_pandas(frame, schema=writer and writer.schema, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            rows += len(frame)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _write_csv(frames: Iterator["pd.DataFrame"], path: Path) -> int:
    rows = 0
    with path.open("w", newline="") as file:
        for frame in frames:
            frame.to_csv(file, index=False, header=rows == 0)
            rows += len(frame)
    return rows


def _write_jsonl(frames: Iterator["pd.DataFrame"], path: Path) -> int:
    rows = 0
    with path.open("w") as file:
        for frame in frames:
            file.write(_json_lines(frame))
            rows += len(frame)
    return rows
