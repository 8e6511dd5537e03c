"""A batch's rows as the body of a request: streamed from a file or from frames."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyfunq.backlog import told_of
from pyfunq.errors import FileUnreadable, InvalidInput
from pyfunq.http_wire import ARROW, CSV, NDJSON, PARQUET
from pyfunq.inputs import as_table

_AT_ONCE = 1024 * 1024
_ROWS_AT_ONCE = 10_000
_MEDIA_TYPES = {".parquet": PARQUET, ".pq": PARQUET, ".csv": CSV, ".jsonl": NDJSON, ".ndjson": NDJSON}


@dataclass(frozen=True, slots=True)
class BatchBody:
    """`stream` begins with it."""

    media_type: str
    stream: Callable[[], AsyncIterator[bytes]]
    is_repeatable: bool
    """Whether it can begin again: it is from a file or a frame."""
    headers: Mapping[str, str] = field(default_factory=dict)


def batch_body(source: Any) -> BatchBody:
    """What `submit_batch` sends. Raises InvalidInput, FileUnreadable."""
    if isinstance(source, str | os.PathLike):
        return _file(Path(source))
    if hasattr(source, "columns") or hasattr(source, "schema"):
        table = as_table(source)
        if not table.num_rows:
            raise InvalidInput("the input has no rows")
        parts = table.to_batches(max_chunksize=_ROWS_AT_ONCE)
        return BatchBody(ARROW, lambda: _in_a_thread(_arrow(table.schema, parts)), True)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return BatchBody(ARROW, lambda: _in_a_thread(_arrow_of_frames(source)), False)
    name = type(source).__name__
    raise InvalidInput(f"a batch is a file, a DataFrame or an iterable of DataFrames, not {name}", field="source")


def _file(path: Path) -> BatchBody:
    zipped = path.suffix.lower() == ".gz"
    ending = (path.with_suffix("") if zipped else path).suffix.lower()
    media_type = _MEDIA_TYPES.get(ending)
    if media_type is None or (zipped and media_type == PARQUET):
        raise FileUnreadable(f"{path.name} is none of .parquet, .pq, .csv, .jsonl, .ndjson, .csv.gz or .jsonl.gz")
    with told_of(path), path.open("rb"):
        pass
    headers = {"Content-Encoding": "gzip"} if zipped else {}
    return BatchBody(media_type, lambda: _in_a_thread(_blocks(path)), True, headers)


def _blocks(path: Path) -> Iterator[bytes]:
    with told_of(path), path.open("rb", buffering=0) as file:
        while block := file.read(_AT_ONCE):
            yield block


def _arrow_of_frames(frames: Iterable[Any]) -> Iterator[bytes]:
    tables = (as_table(frame) for frame in frames)
    first = next(tables, None)
    if first is None:
        raise InvalidInput("the input has no rows")

    def parts() -> Iterator[Any]:
        yield from first.to_batches(max_chunksize=_ROWS_AT_ONCE)
        for number, table in enumerate(tables, 2):
            if not table.schema.equals(first.schema):
                table = _like(table, first.schema, number)
            yield from table.to_batches(max_chunksize=_ROWS_AT_ONCE)

    return _arrow(first.schema, parts())


def _like(table: Any, schema: Any, number: int) -> Any:
    import pyarrow as pa

    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError):
        raise InvalidInput(f"DataFrame {number} has not the columns of the first, or other types") from None


def _arrow(schema: Any, parts: Iterable[Any]) -> Iterator[bytes]:
    """An Arrow IPC stream, a record batch at a time."""
    import pyarrow as pa

    sink = _Sink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), schema) as writer:
        for part in parts:
            writer.write_batch(part)
            yield sink.taken()
    yield sink.taken()


class _Sink:
    """What pyarrow writes to; it holds what was not taken yet."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: Any) -> int:
        self._parts.append(bytes(part))
        return len(part)

    def flush(self) -> None:
        return None

    def close(self) -> None:
        return None

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


async def _in_a_thread(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block
