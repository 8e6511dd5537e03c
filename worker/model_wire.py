"""Values and frames between a worker and a model's own process: JSON that says what they are, and buffers of data.

Both sides read this file, the model's process by its path and perhaps with an older Python, numpy and pandas than the
worker's. So it imports nothing of the project, and nothing but what MLflow needs as well.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import socket
import struct
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID

import numpy as np
import pandas as pd

_HEAD = struct.Struct("<4sQ")
_MAGIC = b"PFQ1"
_MAX_DEPTH = 200
_PLAIN = {str, int, float, bool, type(None)}
"""Types that Python's JSON keeps as they are, NaN and integers of any size included."""
_RAW_KINDS = "biufcmMUS"
"""Kinds of arrays whose bytes are all there is to them."""


class TooDeepError(Exception):
    """A value is nested deeper than 200 levels."""


def send(sock: socket.socket, parts: list[Any]) -> None:
    """What `pack` made."""
    for part in parts:
        sock.sendall(part)


def receive(sock: socket.socket) -> Any:
    """The next value. Raises EOFError at the end, ValueError where something else was sent."""
    magic, length = _HEAD.unpack(_read(sock, _HEAD.size))
    if magic != _MAGIC:
        raise ValueError("not a message of this protocol")
    head = json.loads(bytes(_read(sock, length)))
    buffers = [_read(sock, size) for size in head["sizes"]]
    return _unpack(head["value"], buffers)


def pack(value: Any) -> list[Any]:
    """A value as bytes-like parts.

    What it cannot hold, such as an object of the model's own class or a generator, arrives as an object that does
    nothing, of a class with the same name. Index and column labels, dtypes and memory order stay; of subclasses of
    DataFrame, ndarray, list, str and so on the base remains. Raises TooDeepError.
    """
    packer = _Packer()
    node = packer.pack(value, 0)
    sizes = [memoryview(buffer).nbytes for buffer in packer.buffers]
    head = json.dumps({"value": node, "sizes": sizes}).encode()
    return [_HEAD.pack(_MAGIC, len(head)) + head, *packer.buffers]


def _read(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        got = sock.recv_into(view[done:])
        if not got:
            raise EOFError
        done += got
    return data


class _Packer:
    """A value as JSON: plain ones as they are, dicts and all others as objects whose `$` says what they are."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) in _PLAIN:
            return value
        if depth > _MAX_DEPTH:
            raise TooDeepError
        if value is pd.NaT or value is pd.NA:
            return {"$": "NaT" if value is pd.NaT else "NA"}
        for kind, packed in _PACKERS:
            if isinstance(value, kind):
                return packed(self, value, depth + 1)
        return {"$": "foreign", "module": type(value).__module__, "name": type(value).__qualname__}

    def items(self, values: Any, depth: int) -> list[Any]:
        if set(map(type, values)) <= _PLAIN:
            return list(values)
        return [self.pack(value, depth) for value in values]

    def mapping(self, value: dict[Any, Any], depth: int) -> Any:
        return {"$": "dict", "keys": self.items(list(value), depth), "values": self.items(list(value.values()), depth)}

    def array(self, array: Any, depth: int) -> Any:
        if isinstance(array, np.ma.MaskedArray):
            mask = self.array(np.ma.getmaskarray(array), depth)
            return {"$": "masked", "data": self.array(np.asarray(array.data), depth), "mask": mask}
        array = np.asarray(array)
        if array.dtype.kind == "O":
            return {"$": "objects", "shape": array.shape, "values": self.items(array.ravel().tolist(), depth)}
        if array.dtype.kind not in _RAW_KINDS:
            return self.npy(array)
        is_fortran = array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous
        lined = np.ascontiguousarray(array.T if is_fortran else array)
        data = lined.reshape(-1).view(np.uint8) if lined.size and lined.itemsize else b""
        return {
            "$": "array",
            "dtype": array.dtype.str,
            "shape": lined.shape if is_fortran else array.shape,
            "fortran": is_fortran,
            "buffer": self.buffer(data),
        }

    def npy(self, array: Any) -> Any:
        sink = io.BytesIO()
        try:
            np.save(sink, array, allow_pickle=False)
        except ValueError:
            return self.array(array.astype(object), 0)
        return {"$": "npy", "buffer": self.buffer(sink.getvalue())}

    def scalar(self, value: Any, depth: int) -> Any:
        return {"$": "scalar", "array": self.array(np.asarray(value), depth)}

    def buffer(self, data: Any) -> int:
        self.buffers.append(data)
        return len(self.buffers) - 1

    def frame(self, frame: Any, depth: int) -> Any:
        node = {"$": "frame", "index": self.labels(frame.index, depth), "columns": self.labels(frame.columns, depth)}
        dtypes = set(frame.dtypes)
        if len(dtypes) == 1 and isinstance(dtype := dtypes.pop(), np.dtype) and dtype.kind in "biufc":
            node["block"] = self.array(frame.to_numpy().T, depth)
        else:
            node["data"] = [self.column(frame.iloc[:, place], depth) for place in range(frame.shape[1])]
        return node

    def series(self, series: Any, depth: int) -> Any:
        index, name = self.labels(series.index, depth), self.pack(series.name, depth)
        return {"$": "series", "data": self.column(series, depth), "index": index, "name": name}

    def labels(self, index: Any, depth: int) -> Any:
        if isinstance(index, pd.MultiIndex):
            return {"$": "multi", "rows": self.items(index.tolist(), depth), "names": self.items(index.names, depth)}
        name = self.pack(index.name, depth)
        if isinstance(index, pd.RangeIndex):
            return {"$": "range", "range": [index.start, index.stop, index.step], "name": name}
        if str(index.dtype) == "str" and not index.hasnans:  # what pandas makes of texts by itself
            return {"$": "texts", "values": index.tolist(), "name": name}
        return {"$": "index", "data": self.column(pd.Series(index), depth), "name": name}

    def extension(self, array: Any, depth: int) -> Any:
        return {"$": "extension", "data": self.column(pd.Series(array), depth)}

    def column(self, series: Any, depth: int) -> Any:
        """The values of a Series: an ndarray, or of pandas' own types by Arrow, which keeps those."""
        if isinstance(series.dtype, np.dtype):
            return self.array(series.to_numpy(), depth)
        if isinstance(series.dtype, pd.CategoricalDtype):
            codes, kinds = self.array(series.cat.codes.to_numpy(), depth), self.labels(series.cat.categories, depth)
            return {"$": "categories", "codes": codes, "categories": kinds, "ordered": bool(series.cat.ordered)}
        try:
            return {"$": "arrow", "buffer": self.arrow(series), "keep": hasattr(series.dtype, "pyarrow_dtype")}
        except Exception:  # Arrow knows not all of pandas' types
            return {"$": "typed", "dtype": str(series.dtype), "values": self.items(series.tolist(), depth)}

    def arrow(self, series: Any) -> int:
        import pyarrow as pa

        table = pa.Table.from_pandas(series.to_frame("value"), preserve_index=False)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return self.buffer(sink.getvalue())


_PACKERS: list[tuple[Any, Callable[[_Packer, Any, int], Any]]] = [
    (Enum, lambda packer, value, depth: {"$": "enum", "value": packer.pack(value.value, depth)}),
    (pd.DataFrame, _Packer.frame),
    (pd.Series, _Packer.series),
    (pd.Index, _Packer.labels),
    (pd.api.extensions.ExtensionArray, _Packer.extension),
    (np.ndarray, _Packer.array),
    (np.generic, _Packer.scalar),
    (list, _Packer.items),
    (tuple, lambda packer, value, depth: {"$": "tuple", "values": packer.items(value, depth)}),
    (dict, _Packer.mapping),
    (bool, lambda packer, value, depth: bool(value)),
    (int, lambda packer, value, depth: int(value)),
    (float, lambda packer, value, depth: float(value)),
    (str, lambda packer, value, depth: str.__str__(value)),
    (bytes, lambda packer, value, depth: {"$": "bytes", "buffer": packer.buffer(bytes(value))}),
    ((bytearray, memoryview), lambda packer, value, depth: {"$": "bytearray", "buffer": packer.buffer(bytes(value))}),
    (Decimal, lambda packer, value, depth: {"$": "decimal", "text": str(value)}),
    (UUID, lambda packer, value, depth: {"$": "uuid", "text": str(value)}),
    (pd.Timestamp, lambda packer, value, depth: {"$": "timestamp", "text": value.isoformat(), "unit": value.unit}),
    (pd.Timedelta, lambda packer, value, depth: {"$": "duration", "text": value.isoformat(), "unit": value.unit}),
    (dt.datetime, lambda packer, value, depth: {"$": "datetime", "text": value.isoformat(), "fold": value.fold}),
    (dt.date, lambda packer, value, depth: {"$": "date", "text": value.isoformat()}),
    (dt.time, lambda packer, value, depth: {"$": "time", "text": value.isoformat(), "fold": value.fold}),
    (
        dt.timedelta,
        lambda packer, value, depth: {"$": "timedelta", "of": [value.days, value.seconds, value.microseconds]},
    ),
]
"""By type, the first that fits."""


def _unpack(node: Any, buffers: list[bytearray]) -> Any:
    if isinstance(node, list):
        return _items(node, buffers)
    return _UNPACKERS[node["$"]](node, buffers) if isinstance(node, dict) else node


def _items(nodes: list[Any], buffers: list[bytearray]) -> list[Any]:
    if set(map(type, nodes)) <= _PLAIN:
        return nodes
    return [_unpack(node, buffers) for node in nodes]


def _mapping(node: Any, buffers: list[bytearray]) -> dict[Any, Any]:
    keys, values = _items(node["keys"], buffers), _items(node["values"], buffers)
    return {key: values[place] for place, key in enumerate(keys)}


def _array(node: Any, buffers: list[bytearray]) -> Any:
    """Writable, like those that a worker makes itself."""
    dtype, shape = np.dtype(node["dtype"]), tuple(node["shape"])
    data = buffers[node["buffer"]]
    array = np.frombuffer(data, dtype).reshape(shape) if data else np.zeros(shape, dtype)
    return array.T if node["fortran"] else array


def _objects(node: Any, buffers: list[bytearray]) -> Any:
    values = _items(node["values"], buffers)
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array.reshape(tuple(node["shape"]))


def _frame(node: Any, buffers: list[bytearray]) -> Any:
    index, columns = _unpack(node["index"], buffers), _unpack(node["columns"], buffers)
    if "block" in node:
        return pd.DataFrame(_unpack(node["block"], buffers).T, index=index, columns=columns, copy=False)
    data = {place: _column(one, buffers, index) for place, one in enumerate(node["data"])}
    frame = pd.DataFrame(data, index=index, copy=False)
    frame.columns = columns
    return frame


def _series(node: Any, buffers: list[bytearray]) -> Any:
    series = _column(node["data"], buffers, _unpack(node["index"], buffers))
    series.name = _label(_unpack(node["name"], buffers))
    return series


def _label(name: Any) -> Any:
    return "" if isinstance(name, (list, dict)) else name


def _column(node: Any, buffers: list[bytearray], index: Any = None) -> Any:
    """A Series; pandas is told the dtype of objects, as it would make texts of them."""
    values = _unpack(node, buffers)
    dtype = object if node["$"] == "objects" else None
    return pd.Series(values, index=index, dtype=dtype, copy=False)


def _index(node: Any, buffers: list[bytearray]) -> Any:
    series = _column(node["data"], buffers)
    return pd.Index(series.array if series.dtype != object else series, dtype=series.dtype, name=_named(node, buffers))


def _named(node: Any, buffers: list[bytearray]) -> Any:
    return _label(_unpack(node["name"], buffers))


def _multi(node: Any, buffers: list[bytearray]) -> Any:
    rows, names = _items(node["rows"], buffers), _items(node["names"], buffers)
    if rows:
        return pd.MultiIndex.from_tuples(rows, names=names)
    return pd.MultiIndex.from_arrays([[] for _ in names], names=names)


def _arrow(node: Any, buffers: list[bytearray]) -> Any:
    import pyarrow as pa

    table = pa.ipc.open_stream(pa.py_buffer(buffers[node["buffer"]])).read_all()
    if node["keep"]:
        return pd.arrays.ArrowExtensionArray(table.column(0))
    return table.to_pandas().iloc[:, 0].array.copy()


def _categories(node: Any, buffers: list[bytearray]) -> Any:
    codes, categories = _unpack(node["codes"], buffers), _unpack(node["categories"], buffers)
    return pd.Categorical.from_codes(codes, categories=categories, ordered=node["ordered"])


def _in_unit(value: Any, node: Any) -> Any:
    return value.as_unit(node["unit"]) if hasattr(value, "as_unit") else value


def _member(value: Any) -> Any:
    return cast(Any, Enum)("Enum", [("member", value)])["member"]


def _foreign(node: Any, _: list[bytearray]) -> Any:
    return type(str(node["name"]), (), {"__module__": node["module"], "__qualname__": node["name"]})()


_UNPACKERS: dict[str, Callable[[Any, list[bytearray]], Any]] = {
    "NaT": lambda node, buffers: pd.NaT,
    "NA": lambda node, buffers: pd.NA,
    "dict": _mapping,
    "tuple": lambda node, buffers: tuple(_items(node["values"], buffers)),
    "array": _array,
    "objects": _objects,
    "npy": lambda node, buffers: np.load(io.BytesIO(buffers[node["buffer"]]), allow_pickle=False),
    "masked": lambda node, buffers: np.ma.MaskedArray(_unpack(node["data"], buffers), _unpack(node["mask"], buffers)),
    "scalar": lambda node, buffers: _unpack(node["array"], buffers)[()],
    "frame": _frame,
    "series": _series,
    "range": lambda node, buffers: pd.RangeIndex(*node["range"]).rename(_named(node, buffers)),
    "texts": lambda node, buffers: pd.Index(node["values"], name=_named(node, buffers)),
    "multi": _multi,
    "index": _index,
    "extension": lambda node, buffers: _column(node["data"], buffers).array,
    "categories": _categories,
    "arrow": _arrow,
    "typed": lambda node, buffers: pd.array(_items(node["values"], buffers), dtype=node["dtype"]),
    "bytes": lambda node, buffers: bytes(buffers[node["buffer"]]),
    "bytearray": lambda node, buffers: buffers[node["buffer"]],
    "enum": lambda node, buffers: _member(_unpack(node["value"], buffers)),
    "decimal": lambda node, buffers: Decimal(node["text"]),
    "uuid": lambda node, buffers: UUID(node["text"]),
    "timestamp": lambda node, buffers: _in_unit(pd.Timestamp(node["text"]), node),
    "duration": lambda node, buffers: _in_unit(pd.Timedelta(node["text"]), node),
    "datetime": lambda node, buffers: dt.datetime.fromisoformat(node["text"]).replace(fold=node["fold"]),
    "date": lambda node, buffers: dt.date.fromisoformat(node["text"]),
    "time": lambda node, buffers: dt.time.fromisoformat(node["text"]).replace(fold=node["fold"]),
    "timedelta": lambda node, buffers: dt.timedelta(*node["of"]),
    "foreign": _foreign,
}
