"""A batch's results as streams of NDJSON, CSV, Parquet or Arrow: row by row in input order, in constant memory."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from producer.api.batch_service import StoredPart
from producer.api.results import ARROW, dumps, plain
from pyfunq.errors import InvalidOutput, JobFailed
from pyfunq.frames import as_frame
from pyfunq.outcomes import decoded

if TYPE_CHECKING:
    import pyarrow as pa

NDJSON, CSV, PARQUET = "application/x-ndjson", "text/csv", "application/vnd.apache.parquet"
KINDS = (NDJSON, CSV, PARQUET, ARROW)
"""What results come as; the first where the caller does not say."""

Parts = Callable[[], AsyncIterator[list[StoredPart]]]
"""Reads a batch's results from the beginning."""


def acceptable(accept: str) -> str | None:
    """Which of `KINDS` an Accept header likes best; None where it likes none."""
    liked: list[tuple[float, int, str]] = []
    for number, one in enumerate(accept.split(",") if accept.strip() else ["*/*"]):
        name, *parameters = (part.strip().lower() for part in one.split(";"))
        kind = next((kind for kind in KINDS if name in (kind, "*/*", f"{kind.partition('/')[0]}/*")), None)
        weight = _weight(parameters)
        if kind is not None and weight > 0:
            liked.append((-weight, number, kind))
    return min(liked)[2] if liked else None


def _weight(parameters: Sequence[str]) -> float:
    text = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 0.0


async def stream(parts: Parts, kind: str) -> AsyncIterator[bytes]:
    """The rows of all jobs that are final, by their number `index`; null where a job has no result."""
    if kind == NDJSON:
        async for group in parts():
            for part in group:
                if lines := await asyncio.to_thread(_lines, part):
                    yield lines
        return
    shape = _Shape()
    async for group in parts():
        for part in group:
            await asyncio.to_thread(shape.see, part)
    writer = await asyncio.to_thread(_Writer, kind, shape)
    async for group in parts():
        for part in group:
            # What became final meanwhile may have another shape.
            if part.index in shape.seen:
                yield await asyncio.to_thread(writer.add, part)
    yield await asyncio.to_thread(writer.end)


def _lines(part: StoredPart) -> bytes:
    if not part.stored.status.is_final:
        return b""
    ids = part.ids()
    names: Sequence[dict[str, Any]] = [{}] * part.rows if ids is None else [{"custom_id": i} for i in ids]
    rows, code = _rows(part)
    error = {"error": code} if code else {}
    lines = (
        dumps({**name, "index": index, "prediction": row, **error})
        for index, (name, row) in enumerate(zip(names, rows, strict=True), part.first)
    )
    return b"\n".join(lines) + b"\n"


def _rows(part: StoredPart) -> tuple[Sequence[Any], str | None]:
    """A value a row, or nulls and the code that says why."""
    try:
        rows = plain(decoded("the job", part.stored))
    except JobFailed as exc:
        return [None] * part.rows, exc.error_code or exc.code
    except InvalidOutput as exc:
        return [None] * part.rows, exc.code
    if not isinstance(rows, list) or len(rows) != part.rows:
        return [None] * part.rows, InvalidOutput.code
    return rows, None


class _Shape:
    """The columns that hold the rows of all parts that were seen: names, and types wide enough for each."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self._types: dict[str, Any] = {}
        self._has_ids = False

    def see(self, part: StoredPart) -> None:
        if not part.stored.status.is_final:
            return
        self.seen.add(part.index)
        self._has_ids = self._has_ids or part.packed_ids is not None
        table = _predictions(part)
        for field in [] if table is None else table.schema:
            self._types[field.name] = _wide_enough(self._types.get(field.name), field.type)

    def schema(self) -> "pa.Schema":
        import pyarrow as pa

        types = self._types or {"prediction": pa.null()}
        own = [("index", pa.int64()), *([("custom_id", pa.string())] if self._has_ids else [])]
        return pa.schema([(_free(name, types), kind) for name, kind in own] + list(types.items()))

    def table(self, part: StoredPart) -> "pa.Table":
        import pyarrow as pa

        schema = self.schema()
        found = _predictions(part)
        own: list[Any] = [pa.array(range(part.first, part.first + part.rows), pa.int64())]
        if self._has_ids:
            ids = part.ids()
            own.append(pa.nulls(part.rows, pa.string()) if ids is None else pa.array(ids, pa.string()))
        columns = [
            _cast(found.column(field.name), field.type)
            if found is not None and field.name in found.column_names
            else pa.nulls(part.rows, field.type)
            for field in list(schema)[len(own) :]
        ]
        return pa.table([*own, *columns], schema=schema)


def _free(name: str, taken: Any) -> str:
    while name in taken:
        name = f"_{name}"
    return name


def _predictions(part: StoredPart) -> "pa.Table | None":
    """None where there are none."""
    import pyarrow as pa

    try:
        frame = as_frame(decoded("the job", part.stored))
    except (JobFailed, InvalidOutput):
        return None
    if len(frame) != part.rows:
        return None
    columns: dict[str, Any] = {}
    for place, name in enumerate(frame.columns):
        values = frame.iloc[:, place]
        try:
            columns[_free(name, columns)] = pa.chunked_array([pa.Array.from_pandas(values)])
        except pa.ArrowException:
            columns[_free(name, columns)] = pa.chunked_array([_texts(values.tolist())])
    return pa.table(columns)


def _texts(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if value is None else dumps(value).decode() for value in values], pa.string())


def _wide_enough(one: Any, other: Any) -> Any:
    """A type that holds the values of both; at last text, in which they are JSON."""
    import pyarrow as pa

    if one is None or one == other:
        return other
    try:
        schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _cast(values: Any, kind: Any) -> Any:
    import pyarrow as pa

    if values.type == kind:
        return values
    if pa.types.is_string(kind) and not pa.types.is_null(values.type):
        return _texts(values.to_pylist())
    return values.cast(kind, safe=False)


class _TableWriter(Protocol):
    def write_table(self, table: "pa.Table") -> None: ...
    def close(self) -> None: ...


class _Drain(io.RawIOBase):
    """A file that gives what was written to it, once."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written

    def taken(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held


class _Writer:
    """Tables of one schema as the bytes of a file that is given away as it is written."""

    def __init__(self, kind: str, shape: _Shape) -> None:
        import pyarrow as pa
        import pyarrow.csv as pa_csv
        import pyarrow.parquet as pq

        schema = shape.schema()
        self._shape = shape
        self._drain = _Drain()
        self._nested = [f.name for f in schema if kind == CSV and pa.types.is_nested(f.type)]
        for name in self._nested:
            schema = schema.set(schema.get_field_index(name), pa.field(name, pa.string()))
        makers: dict[str, Callable[..., _TableWriter]] = {
            CSV: pa_csv.CSVWriter,
            PARQUET: pq.ParquetWriter,
            ARROW: pa.ipc.new_stream,
        }
        self._file = pa.PythonFile(self._drain, "w")
        self._writer = makers[kind](self._file, schema)

    def add(self, part: StoredPart) -> bytes:
        table = self._shape.table(part)
        for name in self._nested:
            texts = _texts(table.column(name).to_pylist())
            table = table.set_column(table.column_names.index(name), name, texts)
        self._writer.write_table(table)
        self._file.flush()
        return self._drain.taken()

    def end(self) -> bytes:
        self._writer.close()
        self._file.flush()
        return self._drain.taken()
