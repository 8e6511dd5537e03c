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
    return await asyncio.to_thread(lambda: dumps(plain(decoded(what, stored))))


async def as_arrow(what: str, stored: StoredResult) -> bytes:
    """Likewise an Arrow IPC stream; predictions that are no table have a column `predictions`."""
    if stored.format == "arrow" and stored.payload is not None:
        return stored.payload
    return await asyncio.to_thread(lambda: _stream(decoded(what, stored)))


def plain(result: Any) -> Any:
    """Predictions as lists and objects, for `dumps`: a row of a frame is an object."""
    import numpy as np
    import pandas as pd

    if isinstance(result, pd.DataFrame):
        return result.to_dict("records")
    return result.tolist() if isinstance(result, pd.Series | np.ndarray) else result


def dumps(value: Any) -> bytes:
    """JSON of what `plain` gives; NaN, NaT and NA are null."""
    return orjson.dumps(value, default=_default, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)


def _default(value: Any) -> str | None:
    import pandas as pd

    return None if value is pd.NaT or value is pd.NA else str(value)


def _stream(result: Any) -> bytes:
    import pyarrow as pa

    rows = result if isinstance(result, list) else [result]
    records = bool(rows) and all(isinstance(row, dict) for row in rows)
    table = pa.Table.from_pylist(rows) if records else pa.table({"predictions": rows})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
