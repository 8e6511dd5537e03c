"""Parquet files: checked by their footers, and by their values where only these can tell."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pyfunq.errors import FileUnreadable
from pyfunq.inputs import check_names
from pyfunq.signature import Signature, arrow_type, cast_values, may_be_absent
from pyfunq.text_files import Tables

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ROWS = 16_384
BLOCK_BYTES = 32 * 1024 * 1024
"""Files are read in blocks of about this many rows or bytes, whichever is less."""
_TAIL_BYTES = 8  # the footer's length and the magic word


def open_parquet(path: Path, signature: Signature | None) -> tuple[int, Tables]:
    """The number of rows, and what reads them.

    Raises FileUnreadable, and InvalidInput for what does not fit the signature; lets pyarrow's errors and
    OSError pass.
    """
    import pyarrow as pa

    with parquet_file(path) as file:
        names = column_names(file)
        check_names(names, "the file")
        check_parquet(file, names, path.stat().st_size, signature, str(path))
        meta = file.metadata
        width = max(1, sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)))
    block = max(1, min(BLOCK_ROWS, meta.num_rows * BLOCK_BYTES // width))

    def tables(rows: int) -> Iterator["pa.Table"]:
        size = block // rows * rows or block
        with parquet_file(path) as file:
            for batch in file.iter_batches(batch_size=size, use_threads=False):
                yield pa.Table.from_batches([batch]).select(names).replace_schema_metadata(None)

    return meta.num_rows, tables


def parquet_file(source: Path | IO[bytes]) -> Any:
    """A pyarrow ParquetFile, read a page at a time; where its writer left checksums, they are verified."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)


def column_names(file: Any) -> list[str]:
    """Those of a ParquetFile, without what pandas wrote as an index."""
    schema = file.schema_arrow
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in schema.names if name not in index]


def footer_digest(file: IO[bytes], size: int, what: str) -> str:
    """A checksum of the file's last part, which says where everything is; `what` is the file's name in messages."""
    file.seek(max(0, size - _TAIL_BYTES))
    tail = _read(file, _TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < _TAIL_BYTES or tail[4:] != b"PAR1" or length > size - _TAIL_BYTES:
        raise FileUnreadable(f"{what} cannot be read as parquet: it is damaged or ends in the middle")
    file.seek(size - _TAIL_BYTES - length)
    digest = hashlib.blake2b(_read(file, length), digest_size=16).hexdigest()
    file.seek(0)
    return digest


def _read(file: IO[bytes], size: int) -> bytes:
    """All of it: an unbuffered file may give less at a time."""
    parts = bytearray()
    while len(parts) < size and (part := file.read(size - len(parts))):
        parts += part
    return bytes(parts)


def check_parquet(file: Any, names: Sequence[str], size: int, signature: Signature | None, what: str) -> None:
    """A ParquetFile of `size` bytes, of which the columns `names` are meant; `what` is its name in messages.

    Raises FileUnreadable and InvalidInput. Reads values only where the footer cannot tell whether they fit.
    """
    import pyarrow as pa

    _check_extents(file.metadata, size, what)
    if signature is not None and not signature.is_tensor:
        schema = file.schema_arrow
        _check_signature(file, pa.schema([schema.field(name) for name in names]), signature)


def _check_extents(meta: Any, size: int, what: str) -> None:
    """Whether the column data that the footer names lies within the file."""
    for group in range(meta.num_row_groups):
        for index in range(meta.num_columns):
            column = meta.row_group(group).column(index)
            start = min(o for o in (column.dictionary_page_offset, column.data_page_offset) if o)
            if start + column.total_compressed_size > size:
                raise FileUnreadable(f"{what} ends in the middle: column data lies beyond its end")


def _check_signature(file: Any, schema: Any, signature: Signature) -> None:
    """Columns, types, nulls by the footer's statistics, and whatever only the values can tell."""
    import pyarrow as pa

    signature.check_columns(schema.names)
    columns = {n: c for n, c in zip(schema.names, signature.aligned(schema.names), strict=True) if c}
    nulls = _null_statistics(file.metadata)
    uncounted = [n for n, c in columns.items() if not c.holds_nulls and n not in nulls]
    for batch in _batches(file, uncounted):
        for name in uncounted:
            nulls[name] = nulls.get(name, 0) + batch.column(name).null_count
    absent = {n for n, c in columns.items() if may_be_absent(c) and nulls[n] == file.metadata.num_rows}
    schema = pa.schema([field for field in schema if field.name not in absent])
    signature.check_arrow(schema, nulls)
    targets = {n: arrow_type(columns[n], schema.field(n).type) for n in schema.names if columns[n].is_scalar}
    # Casting to a wider type cannot fail; to a narrower one it depends on the values.
    narrowed = [n for n, to in targets.items() if schema.field(n).type != to and columns[n].type != "double"]
    for batch in _batches(file, narrowed):
        for name in narrowed:
            cast_values(batch.column(name), targets[name], name, columns[name])


def _batches(file: Any, names: Sequence[str]) -> Iterator[Any]:
    if names:
        yield from file.iter_batches(batch_size=BLOCK_ROWS, columns=list(names))


def _null_statistics(meta: Any) -> dict[str, int]:
    """Nulls by column, for the flat columns whose every row group says so."""
    nulls: dict[str, int] = {}
    for index in range(meta.num_columns):
        found = [meta.row_group(group).column(index) for group in range(meta.num_row_groups)]
        if all(c.statistics is not None and c.statistics.has_null_count for c in found):
            nulls[meta.schema.column(index).path] = sum(c.statistics.null_count for c in found)
    return nulls
