"""Arrow IPC files and streams: every value checked before any is used, then read again block by block."""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyfunq.errors import FileUnreadable
from pyfunq.inputs import check_names
from pyfunq.signature import Signature
from pyfunq.text_files import Tables, check_nulls

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ROWS = 16_384
INFLATED_BYTES = 128 * 1024 * 1024
"""The largest compressed record batch, and all dictionaries together, once inflated."""
_DICTIONARY, _RECORDS = 2, 3


def open_arrow(path: Path, signature: Signature | None) -> tuple[int, Tables]:
    """The number of rows, and what reads them; file and stream are told apart by how they begin.

    A record batch, however large, is read from the file as it lies there; one that is compressed is held whole. Raises
    InvalidInput for what does not fit the signature; lets pyarrow's errors and OSError pass.
    """
    names: list[str] = []
    nulls: dict[str, int] = {}
    rows = 0
    for block in _blocks(path, check=True):
        if not names:
            names = _column_names(block.schema)
            check_names(names, "the schema")
            nulls = dict.fromkeys(names, 0)
        block = block.select(names)
        if signature is not None:
            signature.conform_arrow(block)
        for name in names:
            nulls[name] += block.column(name).null_count
        rows += block.num_rows
    if signature is not None and names and not signature.is_tensor:
        check_nulls(nulls, rows, signature.aligned(names))

    def tables(_rows: int) -> Iterator["pa.Table"]:
        for block in _blocks(path, check=False):
            yield block.select(names).replace_schema_metadata(None)

    return rows, tables


def _blocks(path: Path, *, check: bool) -> Iterator["pa.Table"]:
    import pyarrow as pa

    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stream = _stream(mapped)
    if check:
        _check_inflated(stream, path)
    for batch in pa.ipc.open_stream(stream):
        # What comes from elsewhere may say offsets that lead out of its buffers. Nested values are checked at once:
        # the check of a part of them looks at all of them.
        nested = any(pa.types.is_nested(kind) for kind in batch.schema.types)
        if check:
            batch.validate(full=nested)
        for start in range(0, batch.num_rows, BLOCK_ROWS):
            block = batch.slice(start, BLOCK_ROWS)
            if check and not nested:
                block.validate(full=True)
            yield pa.Table.from_batches([block])
            if hasattr(mapped, "madvise"):
                # What was read counts as this process's memory, until it is told that it need not stay.
                mapped.madvise(mmap.MADV_DONTNEED)


def _stream(mapped: mmap.mmap) -> Any:
    """What the file holds as a stream: a file is one, between a magic word and a footer. Raises ArrowInvalid."""
    import pyarrow as pa

    data = pa.py_buffer(mapped)
    if mapped[:6] != b"ARROW1":
        return data
    pa.ipc.open_file(data)  # whether the footer is there
    return data.slice(8)


def _check_inflated(stream: Any, path: Path) -> None:
    """Raises FileUnreadable where a few bytes would become very many: before any of them does."""
    import pyarrow as pa

    dictionaries = 0
    for message in pa.ipc.MessageReader.open_stream(stream):
        try:
            inflated, is_dictionary = _inflated_bytes(message)
        except (struct.error, IndexError):
            raise FileUnreadable(f"{path} is damaged: a message is not what it says") from None
        dictionaries += inflated if is_dictionary else 0
        if max(inflated, dictionaries) > INFLATED_BYTES:
            most = f"{INFLATED_BYTES // 2**20} MiB"
            raise FileUnreadable(f"{path} has a record batch of more than {most} when inflated: write smaller ones")


def _inflated_bytes(message: Any) -> tuple[int, bool]:
    """How many bytes a message's compressed buffers become, and whether it is a dictionary.

    Format: Message.fbs of Arrow; a compressed buffer begins with its inflated length, or -1 where it is not.
    """
    table = _Table.root(bytes(message.metadata))
    kind = table.byte(1)
    if kind not in (_DICTIONARY, _RECORDS):
        return 0, False
    batch = table.table(2)
    if kind == _DICTIONARY and batch is not None:
        batch = batch.table(1)
    if batch is None or batch.table(3) is None:
        return 0, kind == _DICTIONARY
    body = memoryview(message.body)
    sizes = (
        struct.unpack_from("<q", body, offset)[0]
        for offset, length in batch.pairs(2)
        if length >= struct.calcsize("<q")
    )
    return sum(max(size, 0) for size in sizes), kind == _DICTIONARY


class _Table:
    """A table of a flatbuffer. Raises struct.error for what leads out of it."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place
        self._fields = place - struct.unpack_from("<i", data, place)[0]

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    def _field(self, number: int) -> int | None:
        (size,) = struct.unpack_from("<H", self._data, self._fields)
        if 4 + 2 * number >= size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._fields + 4 + 2 * number)
        return self._place + offset if offset else None

    def byte(self, number: int) -> int:
        place = self._field(number)
        return 0 if place is None else self._data[place]

    def table(self, number: int) -> "_Table | None":
        place = self._field(number)
        return None if place is None else _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])

    def pairs(self, number: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two 64-bit integers."""
        place = self._field(number)
        if place is None:
            return
        place += struct.unpack_from("<I", self._data, place)[0]
        (count,) = struct.unpack_from("<I", self._data, place)
        for one in range(count):
            yield struct.unpack_from("<qq", self._data, place + 4 + 16 * one)


def _column_names(schema: Any) -> list[str]:
    """Without what pandas wrote as an index."""
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in schema.names if name not in index]
