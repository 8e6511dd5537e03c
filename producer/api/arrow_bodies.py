"""Arrow IPC streams from outside: measured before they are read, so that a few bytes cannot become many."""

import struct
from typing import TYPE_CHECKING, Any

from pyfunq.errors import InputTooLarge, MalformedInput

if TYPE_CHECKING:
    import pyarrow as pa

_CONTINUATION = 0xFFFFFFFF
_DICTIONARIES, _RECORDS = 2, 3
_BITS = 8


def read_table(body: bytes, at_most: int) -> "pa.Table":
    """The table that an Arrow IPC stream holds, checked through and through.

    `at_most`: bytes of its buffers, inflated, and rows. Raises MalformedInput, InputTooLarge.
    """
    import pyarrow as pa

    try:
        _measure(memoryview(body), at_most)
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, struct.error, IndexError, ValueError, OSError, TypeError, NotImplementedError):
        raise MalformedInput("the body is not an Arrow IPC stream, as its content type says") from None
    return table


def _measure(body: memoryview, at_most: int) -> None:
    place = size = rows = 0
    while place < len(body):
        mark, length = struct.unpack_from("<Ii", body, place)
        if mark != _CONTINUATION:
            raise ValueError("an Arrow stream's messages begin with FFFFFFFF")
        if length == 0:
            return
        if length < 0:
            raise ValueError("length")
        metadata = body[place + 8 : place + 8 + length]
        content = place + 8 + length
        message = _Record.root(metadata)
        kind, extent = message.number(1, "<B"), message.number(3, "<q")
        if extent < 0 or content + extent > len(body):
            raise ValueError("body length")
        if kind in (_DICTIONARIES, _RECORDS):
            header = message.record(2)
            batch = header if kind == _RECORDS else header.record(1)
            size += _inflated(batch, body[content : content + extent], at_most)
            rows += batch.number(0, "<q") if kind == _RECORDS else 0
            if size > at_most or not 0 <= rows <= at_most:
                raise InputTooLarge(f"the table has more than {at_most:,} bytes or rows")
        place = content + extent


def _inflated(batch: "_Record", content: memoryview, at_most: int) -> int:
    """Bytes of a record batch's buffers once they are read."""
    if any(not 0 <= length <= _BITS * at_most for length, _ in batch.pairs(1)):
        raise InputTooLarge(f"a column has more than {_BITS * at_most:,} values")
    is_compressed, size = batch.has(3), 0
    for offset, length in batch.pairs(2):
        if offset < 0 or length < 0 or offset + length > len(content):
            raise ValueError("buffer")
        inflated = struct.unpack_from("<q", content, offset)[0] if is_compressed and length else length
        if inflated < -1:
            raise ValueError("buffer")
        size += length if inflated == -1 else inflated
    return size


class _Record:
    """A table of a FlatBuffer, of which these few fields are read; reading beyond it raises struct.error."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data = data
        self._place = place
        self._fields = place - int(struct.unpack_from("<i", data, place)[0])
        if self._fields < 0:
            raise ValueError("vtable")
        self._size = struct.unpack_from("<H", data, self._fields)[0]

    @classmethod
    def root(cls, data: memoryview) -> "_Record":
        return cls(data, struct.unpack_from("<I", data)[0])

    def _at(self, field: int) -> int:
        """Where a field is; 0 where it is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = int(struct.unpack_from("<H", self._data, self._fields + entry)[0])
        return self._place + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._at(field) != 0

    def number(self, field: int, form: str) -> int:
        place = self._at(field)
        return int(struct.unpack_from(form, self._data, place)[0]) if place else 0

    def _there(self, field: int) -> int:
        place = self._at(field)
        if not place:
            raise ValueError("an absent field")
        return place + int(struct.unpack_from("<I", self._data, place)[0])

    def record(self, field: int) -> "_Record":
        return _Record(self._data, self._there(field))

    def pairs(self, field: int) -> list[tuple[Any, ...]]:
        """A vector of structs of two 64-bit numbers."""
        if not self.has(field):
            return []
        place = self._there(field)
        count = struct.unpack_from("<I", self._data, place)[0]
        found = self._data[place + 4 : place + 4 + 16 * count]
        if len(found) != 16 * count:
            raise ValueError("vector")
        return list(struct.iter_unpack("<qq", found))
