"""Bodies of MLflow's scoring protocol (JSON, CSV, Parquet) as a job's input."""

import asyncio
import io
import tempfile
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Request

from producer.api.bodies import JSON, content_type, json_body, whole
from producer.api.problems import Problem
from pyfunq.errors import FileUnreadable, InputTooLarge, InvalidInput
from pyfunq.inputs import FORMATS, EncodedInput, check_names, encode_input
from pyfunq.parquet_files import column_names, parquet_file
from pyfunq.signature import Signature
from pyfunq.text_files import open_csv

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
TYPES = (JSON, CSV, PARQUET)
_PARQUET_ROWS = 256


class Scoring(NamedTuple):
    """What is to be predicted. `body`: the JSON that came, for pointers."""

    inputs: Any
    params: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None


async def scoring_of(request: Request, signature: Signature | None, at_most: int, input_bytes: int) -> Scoring:
    """A body of at most `at_most` bytes as an input of at most `input_bytes`.

    Raises Problem, MalformedInput, InvalidInput, InputTooLarge.
    """
    kind = content_type(request)
    _check_charset(request)
    if kind == CSV:
        return Scoring(await asyncio.to_thread(_from_csv, await whole(request, at_most), signature, input_bytes))
    if kind == PARQUET:
        return Scoring(await asyncio.to_thread(_from_parquet, await whole(request, at_most), signature, input_bytes))
    if kind != JSON:
        raise Problem(415, f"the body must be {', '.join(TYPES)}", headers={"Accept": ", ".join(TYPES)})
    # MLflow's own client writes the NaN of a frame as such.
    return _from_json(await json_body(request, at_most, nan_as_null=True))


def _check_charset(request: Request) -> None:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    charset = header.get_param("charset", "utf-8")
    if not isinstance(charset, str) or charset.lower() not in ("utf-8", "utf8"):
        raise Problem(415, "the body's charset must be utf-8")


def _from_json(body: Mapping[str, Any]) -> Scoring:
    given = [name for name in body if name in FORMATS]
    if unknown := [name for name in body if name not in FORMATS and name != "params"]:
        raise InvalidInput(f"{unknown[0][:80]!r} is not a field of a scoring request", field=unknown[0])
    return Scoring({name: body[name] for name in given}, body.get("params"), body)


def _from_csv(body: bytes, signature: Signature | None, at_most: int) -> EncodedInput:
    """Typed by the signature, row by row as a batch's file is."""
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="pyfunq-") as folder:
        path = Path(folder) / "body.csv"
        path.write_bytes(body)
        try:
            rows, tables = open_csv(path, signature)
            parts = list(tables(1)) if rows else []
        except FileUnreadable as exc:
            raise InvalidInput(exc.message.replace(str(path), "the body")) from None
        except (pa.ArrowException, UnicodeDecodeError):
            raise InvalidInput("the body cannot be read as CSV in UTF-8 with a header") from None
    return _encoded(pa.concat_tables(parts) if parts else None, signature, at_most)


def _from_parquet(body: bytes, signature: Signature | None, at_most: int) -> EncodedInput:
    import pyarrow as pa

    parts, size = [], 0
    try:
        with parquet_file(io.BytesIO(body)) as file:
            names = column_names(file)
            check_names(names, "the body")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=names, use_threads=False):
                size += batch.nbytes
                if size > at_most:  # a few bytes of Parquet can stand for gigabytes
                    raise InputTooLarge(f"the body's rows have more than {at_most:,} bytes")
                parts.append(batch)
    except (pa.ArrowException, OSError, ValueError):
        raise InvalidInput("the body cannot be read as Parquet") from None
    table = pa.Table.from_batches(parts).select(names).replace_schema_metadata(None) if parts else None
    return _encoded(table, signature, at_most)


def _encoded(table: Any, signature: Signature | None, at_most: int) -> EncodedInput:
    if table is None or not table.num_rows:
        raise InvalidInput("the input has no rows")
    return encode_input(table, signature=signature, max_bytes=at_most)
