"""Backlogs: files, frames and iterables of frames, checked and cut into jobs' inputs in constant memory."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyfunq.arrow_files import open_arrow
from pyfunq.custom_ids import CustomIds
from pyfunq.errors import FileUnreadable, InputTooLarge, InvalidInput, NotConfigured
from pyfunq.inputs import EncodedInput, as_table, encode_params, encode_table
from pyfunq.parquet_files import footer_digest, open_parquet
from pyfunq.signature import Signature
from pyfunq.text_files import Tables, open_csv, open_jsonl

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Backlog:
    """Rows to be predicted. A file's were all checked; those of an iterable are checked as they come."""

    rows: int | None
    """None for an iterable."""
    _tables: Tables
    _signature: Signature | None

    def chunks(
        self, chunk_rows: int, max_bytes: int, params: Mapping[str, Any] | None = None
    ) -> Iterator[EncodedInput]:
        """Inputs of `chunk_rows` rows, the last with the rest; fewer where they would exceed `max_bytes`.

        A backlog made from an iterator can be read once. Raises InvalidInput for rows that do not fit the
        signature, InputTooLarge for a row that is too large alone, FileUnreadable if the file was changed.
        """
        encoded_params = encode_params(params)
        row = 1
        for table in _rechunked(self._tables(chunk_rows), chunk_rows):
            fitting = table if self._signature is None else self._signature.conform_arrow(table)
            yield from _encoded(fitting, encoded_params, max_bytes, row)
            row += table.num_rows
        if row == 1:
            raise InvalidInput("the input has no rows")


def open_backlog(source: Any, *, signature: Signature | None = None, ids: CustomIds | None = None) -> Backlog:
    """Checks a backlog before anything of it is submitted.

    `source`: the path of a .parquet, .pq, .arrow, .arrows, .feather, .csv, .jsonl or .ndjson file (the last three also
    with .gz), a pandas DataFrame, a pyarrow Table or RecordBatch, or an iterable of these. CSV and JSONL are scanned
    whole in constant memory, so that their columns have the same types in all chunks: those of the signature, else the
    narrowest that hold all values (int64, double, boolean or string; for JSONL also nested ones). `ids` learns what
    the rows of JSONL are called.

    Raises FileUnreadable, and InvalidInput for content that does not fit the signature.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise NotConfigured("backlogs need pyarrow: pip install 'pyfunq[analytics]'") from None
    if isinstance(source, str | os.PathLike):
        return _open_file(Path(source), signature, ids)
    if not hasattr(source, "columns"):
        if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
            raise InvalidInput(
                f"a backlog is a path, a DataFrame, an Arrow table or an iterable of these, got {type(source).__name__}"
            )
        return Backlog(None, lambda _: _frames(source), signature)
    table = as_table(source)
    if not table.num_rows:
        raise InvalidInput("the input has no rows")
    if signature is not None:
        table = signature.conform_arrow(table)
    return Backlog(table.num_rows, lambda _: iter((table,)), signature)


def check_file(path: str | Path, *, signature: Signature | None = None) -> int:
    """The number of rows of a file that can be submitted. Raises as `open_backlog` does."""
    return open_backlog(Path(path), signature=signature).rows or 0


def fingerprint(path: Path) -> dict[str, int | str]:
    """What tells whether a file is still the same: size, modification time, a checksum of content or Parquet footer."""
    with told_of(path), path.open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        if path.suffix.lower() in (".parquet", ".pq"):
            checksum = footer_digest(file, stat.st_size, str(path))
        else:
            checksum = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "checksum": checksum}


def read_chunks(
    source: Any, *, chunk_rows: int, max_bytes: int, signature: Signature | None = None
) -> Iterator[EncodedInput]:
    """The chunks of `open_backlog(source)`."""
    return open_backlog(source, signature=signature).chunks(chunk_rows, max_bytes)


def _rechunked(tables: Iterable["pa.Table"], chunk_rows: int) -> Iterator["pa.Table"]:
    held: list[Any] = []
    rows = 0
    for table in tables:
        offset = 0
        while offset < table.num_rows:
            part = table.slice(offset, chunk_rows - rows)
            held.append(part)
            offset += part.num_rows
            rows += part.num_rows
            if rows == chunk_rows:
                yield _joined(held)
                held, rows = [], 0
    if held:
        yield _joined(held)


def _joined(tables: "list[pa.Table]") -> "pa.Table":
    import pyarrow as pa

    if len(tables) == 1:
        return tables[0]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        raise InvalidInput("a column changes its type from one frame to the next") from None


def _encoded(table: "pa.Table", params: bytes | None, max_bytes: int, first_row: int) -> Iterator[EncodedInput]:
    encoded = encode_table(table, params)
    if encoded.size <= max_bytes:
        yield encoded
    elif table.num_rows == 1:
        raise InputTooLarge(
            f"row {first_row} alone has {encoded.size:,} bytes; at most {max_bytes:,} are allowed "
            "(PYFUNQ_MAX_INPUT_BYTES)"
        )
    else:
        half = table.num_rows // 2
        yield from _encoded(table.slice(0, half), params, max_bytes, first_row)
        yield from _encoded(table.slice(half), params, max_bytes, first_row + half)


def _frames(frames: Iterable[Any]) -> Iterator["pa.Table"]:
    names: list[str] | None = None
    for number, frame in enumerate(frames, 1):
        table = as_table(frame)
        names = names or table.column_names
        if set(table.column_names) != set(names):
            raise InvalidInput(f"frame {number} has other columns than frame 1")
        if table.num_rows:
            yield table.select(names)


def _open_file(path: Path, signature: Signature | None, ids: CustomIds | None) -> Backlog:
    def open_lines(path: Path, signature: Signature | None) -> tuple[int, Tables]:
        return open_jsonl(path, signature, ids)

    readers = {
        ".parquet": open_parquet,
        ".pq": open_parquet,
        ".arrow": open_arrow,
        ".arrows": open_arrow,
        ".feather": open_arrow,
        ".csv": open_csv,
        ".jsonl": open_lines,
        ".ndjson": open_lines,
    }
    with told_of(path):
        if path.is_dir():
            raise FileUnreadable(f"{path} is a directory, not a file")
        zipped = path.suffix.lower() == ".gz"
        kind = (path.with_suffix("") if zipped else path).suffix.lower()
        if kind not in readers or (zipped and readers[kind] in (open_parquet, open_arrow)):
            endings = ".parquet, .pq, .arrow, .arrows, .feather, .csv, .jsonl, .ndjson, .csv.gz or .jsonl.gz"
            raise FileUnreadable(f"{path}: the name must end in {endings}")
        stamp = _stamp(path)
        if stamp[0] == 0:
            raise FileUnreadable(f"{path} is empty")
        rows, tables = readers[kind](path, signature)
    if not rows:
        raise FileUnreadable(f"{path} has no rows")
    return Backlog(rows, lambda rows: _unchanged(path, stamp, tables(rows)), signature)


@contextmanager
def told_of(path: Path | str) -> Iterator[None]:
    """Errors from reading a path or URL as ours, with its name and without its content."""
    import pyarrow as pa

    try:
        yield
    except InvalidInput as error:
        raise type(error)(f"{path}: {error.message}", field=error.field) from None
    except FileNotFoundError:
        raise FileUnreadable(f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise FileUnreadable(f"{path} is not UTF-8") from None
    except (gzip.BadGzipFile, EOFError):
        raise FileUnreadable(f"{path} ends in the middle, or is not gzip") from None
    except PermissionError:
        raise FileUnreadable(f"{path} cannot be read: permission denied") from None
    except (pa.ArrowException, OSError, zlib.error):
        endings = str(path).lower().removesuffix(".gz").rsplit("/", 1)[-1].rsplit(".", 1)
        kind = endings[-1] if len(endings) == 2 else "Parquet"
        raise FileUnreadable(f"{path} cannot be read as {kind}: it is damaged or ends in the middle") from None


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _unchanged(path: Path, stamp: tuple[int, int, int], tables: Iterable["pa.Table"]) -> Iterator["pa.Table"]:
    with told_of(path):
        for table in tables:
            if _stamp(path) != stamp:
                raise FileUnreadable(f"{path} was changed after it was checked")
            yield table
