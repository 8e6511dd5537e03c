"""Stored results as JSON or Arrow, whichever the caller asks for and whichever they are kept as."""

import asyncio
from typing import Any

import orjson

from producer.api.bodies import JSON
from pyfunq import http_wire
from pyfunq.entries import StoredResult
from pyfunq.outcomes import decoded

ARROW = http_wire.ARROW


def prefers_arrow(accept: str, kept_as: str | None = None) -> bool:
    """Whether Arrow is asked for; where JSON is welcome too, it is what the result is kept as that decides."""
    accepted = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return ARROW in accepted and (JSON not in accepted or kept_as == "arrow")


async def as_json(what: str, stored: StoredResult) -> bytes:
    """The predictions' JSON. Raises JobFailed where there are none (any more)."""
    if stored.format == "json" and stored.payload is not None:
        return stored.payload
    return await asyncio.to_thread(lambda: _dumps(decoded(what, stored)))


async def as_arrow(what: str, stored: StoredResult) -> bytes:
    """Likewise an Arrow IPC stream; predictions that are no table have a column `predictions`."""
    if stored.format == "arrow" and stored.payload is not None:
        return stored.payload
    return await asyncio.to_thread(lambda: _stream(decoded(what, stored)))


def _dumps(result: Any) -> bytes:
    """A row of a frame is an object; NaN, NaT and NA are null."""
    import numpy as np
    import pandas as pd

    if isinstance(result, pd.DataFrame):
        result = result.to_dict("records")
    elif isinstance(result, pd.Series | np.ndarray):
        result = result.tolist()
    return orjson.dumps(
        result,
        default=lambda value: None if value is pd.NaT or value is pd.NA else str(value),
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z,
    )


def _stream(result: Any) -> bytes:
    import pyarrow as pa

    rows = result if isinstance(result, list) else [result]
    records = bool(rows) and all(isinstance(row, dict) for row in rows)
    table = pa.Table.from_pylist(rows) if records else pa.table({"predictions": rows})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
