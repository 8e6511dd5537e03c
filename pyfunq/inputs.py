"""What callers give as a model's input: validated, measured, and encoded for the ledger."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from operator import itemgetter
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from pyfunq.errors import InputTooLarge, InvalidInput, MalformedInput, NotConfigured
from pyfunq.signature import Signature, shown_name

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
MAX_DEPTH = 64
"""How deep lists and objects may be nested."""
COMPRESS_BYTES = 16 * 1024
"""Arrow input above this is compressed if it shrinks: below it the gain is not worth the time."""
_SAMPLE_BYTES = 64 * 1024
_WORTH_IT = 0.8

PLAIN = frozenset({int, float, str, bool, NoneType})
"""Types of the values that JSON holds beside lists and objects."""
JSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


class EncodedInput(NamedTuple):
    """One job's input as the ledger keeps it.

    `payload` by `format`: `split` is JSON {"columns": [names], "data": [rows]}; `tensor` is JSON with one
    key, `instances` or `inputs`, as MLflow defines them; `arrow` is an Arrow IPC stream of one batch;
    `reference` is JSON that names a file's rows (`pyfunq.references`).
    `params` is a JSON object with sorted keys, or None.
    """

    format: Literal["split", "tensor", "arrow", "reference"]
    payload: bytes
    params: bytes | None
    rows: int

    @property
    def size(self) -> int:
        """Bytes, as `max_bytes` counts them."""
        return len(self.payload) + len(self.params or b"")


def encode_input(
    inputs: Any, params: Mapping[str, Any] | None = None, *, signature: Signature | None, max_bytes: int
) -> EncodedInput:
    """Validates and encodes one input.

    `inputs`: a mapping with exactly one of MLflow's `dataframe_split`, `dataframe_records`, `instances` and
    `inputs` (strict JSON values: no NaN, no infinities, no numpy scalars), and optionally `params`; a pandas
    DataFrame (its index is dropped); a pyarrow Table or RecordBatch. A `signature` adds its checks.

    Raises InvalidInput, InputTooLarge; their messages count rows from 1.
    """
    if isinstance(inputs, Mapping):
        if inputs.get("params") is not None:
            if params is not None:
                raise InvalidInput("params are given twice: within the input and beside it", field="params")
            params = inputs["params"]
        encoded = _encode_json(inputs, signature, encode_params(params))
        return _measured(encoded, max_bytes)
    table = as_table(inputs)
    if not table.num_rows:
        raise InvalidInput("the input has no rows")
    if signature is not None:
        table = signature.conform_arrow(table)
    return _measured(encode_table(table, encode_params(params)), max_bytes)


def encode_params(params: Mapping[str, Any] | None, *, name: str = "params") -> bytes | None:
    """The canonical JSON of `params`, an object; None where there are none. `name` is what errors call it."""
    if params is not None and not isinstance(params, Mapping):
        raise InvalidInput(f"{name} must be an object, got {type(params).__name__}", field=name)
    if not params:
        return None
    plain = dict(params)
    check_json(plain, name)
    return _dumps(plain, name, orjson.OPT_SORT_KEYS)


def parse_json_input(text: bytes | str, *, max_bytes: int, nan_as_null: bool = False) -> dict[str, Any]:
    """The JSON object that a program or a caller over HTTP sent, parsed strictly.

    Refuses NaN (unless it is to be null) and infinities, keys that come twice, nesting deeper than MAX_DEPTH, and
    anything but an object. Raises MalformedInput, InputTooLarge.
    """
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    _check_size(size, max_bytes)
    try:
        return _parsed(text, nan_as_null)
    except InvalidInput as error:
        raise MalformedInput(error.message, field=error.field) from None


def _parsed(text: bytes | str, nan_as_null: bool) -> dict[str, Any]:
    try:
        value = loads_strictly(text.decode("utf-8") if isinstance(text, bytes) else text, nan_as_null=nan_as_null)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the input is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(f"the input is not valid JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise _too_deep("the input") from None
    except ValueError:
        raise InvalidInput("the input holds an integer of too many digits") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"the input must be a JSON object, got {_json_kind(value)}")
    check_json(value, "the input")
    return value


def loads_strictly(text: str, *, nan_as_null: bool = False) -> Any:
    """json.loads that raises InvalidInput for NaN, infinities and keys that come twice."""
    constant = _nan_as_null if nan_as_null else _refuse_constant
    return json.loads(text, parse_constant=constant, object_pairs_hook=_unique_pairs)


def check_json(value: Any, place: str, depth: int = 1) -> None:
    """Raises InvalidInput, naming the place below `place`, where a value is none that strict JSON holds."""
    kind = type(value)
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise InvalidInput(f"{place} has a key that is not a string", field=place)
        children: Sequence[Any] = tuple(value.values())
    elif kind is list or kind is tuple:
        children = value
    else:
        return _check_scalar(value, place)
    if depth > MAX_DEPTH:
        raise _too_deep(place)
    kinds = set(map(type, children))
    if kinds <= PLAIN and (float not in kinds or all_finite(children)):
        return None
    for key, child in value.items() if kind is dict else enumerate(value):
        if type(child) is float or type(child) not in PLAIN:
            check_json(child, f"{place}[{shown_name(key)}]", depth + 1)
    return None


def as_table(frame: Any) -> "pa.Table":
    """A pandas DataFrame, pyarrow Table or RecordBatch as a Table without an index.

    Raises InvalidInput for anything else, for no columns, for column names that are no strings or come
    twice, and for columns that Arrow cannot hold.
    """
    pandas, arrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        check_names(list(frame.columns), "the DataFrame")
        table = _from_pandas(frame)
    elif arrow is not None and isinstance(frame, arrow.Table | arrow.RecordBatch):
        check_names(frame.schema.names, "the table")
        table = arrow.Table.from_batches([frame]) if isinstance(frame, arrow.RecordBatch) else frame
    else:
        raise InvalidInput(
            f"the input must be a mapping with one of {', '.join(FORMATS)}, a pandas DataFrame or a pyarrow "
            f"Table, got {type(frame).__name__}"
        )
    return table.replace_schema_metadata(None)


def encode_table(table: "pa.Table", params: bytes | None = None) -> EncodedInput:
    """An Arrow IPC stream of one batch, compressed with zstd where that pays. Checks nothing."""
    payload = _stream(table, compressed=_shrinks(table)).to_pybytes()
    return EncodedInput("arrow", payload, params, table.num_rows)


def _shrinks(table: "pa.Table") -> bool:
    """Whether a sample from the table's middle does, by enough to be worth compressing and reading again."""
    if table.nbytes <= COMPRESS_BYTES:
        return False
    rows = min(table.num_rows, table.num_rows * _SAMPLE_BYTES // table.nbytes + 1)
    sample = table.slice((table.num_rows - rows) // 2, rows)
    return bool(_stream(sample, compressed=True).size < _WORTH_IT * _stream(sample, compressed=False).size)


def _stream(table: "pa.Table", *, compressed: bool) -> Any:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compressed else None)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def _encode_json(inputs: Mapping[str, Any], signature: Signature | None, params: bytes | None) -> EncodedInput:
    given = [key for key in inputs if key != "params"]
    unknown = [key for key in given if key not in FORMATS]
    if unknown:
        allowed = ", ".join((*FORMATS, "params"))
        raise InvalidInput(
            f"{shown_name(unknown[0])} is not an input format; allowed: {allowed}", field=str(unknown[0])
        )
    if len(given) != 1:
        got = f"got {' and '.join(given)}" if given else "got none"
        raise InvalidInput(f"the input needs exactly one of {', '.join(FORMATS)}; {got}")
    form, value = given[0], inputs[given[0]]
    if form == "dataframe_split":
        return _encode_split(*_split_parts(value), signature, params)
    if form != "inputs" and signature is not None and signature.takes_objects and _are_records(value):
        return _encode_tensor("inputs", value, signature, params)
    is_table = form == "instances" and _are_records(value) and not _is_tensor(signature)
    if is_table and signature is None and _differ(value):
        is_table = False  # a row may be an object of the model's own, which can lack what others have
    if form == "dataframe_records" or is_table:
        return _encode_split(*_record_parts(value, form), signature, params)
    columnar = signature is not None and not signature.is_tensor and not signature.has_nested
    if form == "inputs" and columnar and isinstance(value, dict):
        return _encode_split(*_column_parts(value), signature, params)
    if form == "inputs" and columnar and _are_records(value):
        return _encode_split(*_record_parts(value, form), signature, params)
    return _encode_tensor(form, value, signature, params)


def _split_parts(value: Any) -> tuple[list[str], Any]:
    if not isinstance(value, dict):
        raise InvalidInput(
            f"dataframe_split must be an object with columns and data, got {_json_kind(value)}",
            field="dataframe_split",
        )
    unknown = value.keys() - {"columns", "data", "index"}
    if unknown or "columns" not in value or "data" not in value:
        raise InvalidInput("dataframe_split takes columns, data and optionally index", field="dataframe_split")
    columns, rows = value["columns"], value["data"]
    if type(columns) is not list and type(columns) is not tuple:
        raise InvalidInput("dataframe_split: columns must be a list of names", field="columns")
    if type(rows) is not list and type(rows) is not tuple:
        raise InvalidInput("dataframe_split: data must be a list of rows", field="data")
    check_names(columns, "dataframe_split")
    width = len(columns)
    for number, row in enumerate(rows, 1):
        if type(row) is not list and type(row) is not tuple:
            raise InvalidInput(
                f"dataframe_split: row {number} must be a list, got {_json_kind(row)}", field="data", row=number
            )
        if len(row) != width:
            raise InvalidInput(
                f"dataframe_split: row {number} has {len(row)} values where there are {width} columns",
                field="data",
                row=number,
            )
    return list(columns), rows


def _record_parts(value: Any, form: str) -> tuple[list[str], list[Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(record, dict) for record in value):
        raise InvalidInput(f"{form} must be a list of objects", field=form)
    if not value:
        raise InvalidInput("the input has no rows", field=form)
    columns = list(value[0])
    check_names(columns, form)
    keys = value[0].keys()
    for number, record in enumerate(value, 1):
        if record.keys() != keys:
            raise InvalidInput(f"{form}: row {number} has other keys than row 1", field=form, row=number)
    if len(columns) == 1:
        return columns, [[record[columns[0]]] for record in value]
    return columns, list(map(itemgetter(*columns), value))


def _column_parts(value: dict[str, Any]) -> tuple[list[str], list[Any]]:
    columns = list(value)
    check_names(columns, "inputs")
    if not any(isinstance(values, list | tuple) for values in value.values()):
        return columns, [list(value.values())]
    _check_lengths(value)
    return columns, list(zip(*value.values(), strict=True))


def _encode_split(
    columns: list[str], rows: Sequence[Any], signature: Signature | None, params: bytes | None
) -> EncodedInput:
    if not rows:
        raise InvalidInput("the input has no rows", field="data")
    for number, row in enumerate(rows, 1):
        kinds = set(map(type, row))
        if not kinds <= PLAIN or (float in kinds and not all_finite(row)):
            for name, value in zip(columns, row, strict=True):
                check_json(value, f"row {number}, column {shown_name(name)}")
    if signature is not None:
        signature.check_columns(columns)
        signature.check_rows(columns, rows)
        if absent := signature.absent(columns, rows):
            if len(absent) == len(columns):
                raise InvalidInput("every column holds nothing but nulls", field=columns[0])
            kept = [index for index in range(len(columns)) if index not in absent]
            columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
    payload = _dumps({"columns": columns, "data": rows}, "the input")
    return EncodedInput("split", payload, params, len(rows))


def _encode_tensor(form: str, value: Any, signature: Signature | None, params: bytes | None) -> EncodedInput:
    if value is None or (form == "instances" and not isinstance(value, list | tuple)):
        raise InvalidInput(f"{form} must be a list, got {_json_kind(value)}", field=form)
    check_json(value, form)
    rows = 1
    nested = signature is not None and signature.has_nested
    if isinstance(value, list | tuple):
        rows = len(value)
        if not nested:
            _check_even(value, form)
            if any(isinstance(row, dict) for row in value) and not (signature is None and _differ(value)):
                _record_parts(value, form)
        if signature is not None and not signature.is_tensor and not nested:
            _check_positional(value, form, signature)
    elif isinstance(value, dict):
        check_names(list(value), form)
        # A list beside a scalar: one row of a model with nested columns, which it may be where that is unknown.
        if not nested and (signature is not None or len(set(map(_is_list, value.values()))) == 1):
            rows = _check_lengths(value)
    if not rows:
        raise InvalidInput("the input has no rows", field=form)
    return EncodedInput("tensor", _dumps({form: value}, form), params, rows)


def _check_positional(value: Sequence[Any], form: str, signature: Signature) -> None:
    """A plain list for a signature of columns: a row per item, matched by position."""
    if len(signature.by_name) > 1:
        raise InvalidInput(
            f"the model takes columns by name: give dataframe_split, or {form} as objects with these names",
            field=form,
        )
    rows = value if isinstance(value[0], list | tuple) else [(item,) for item in value]
    names = list(signature.by_name) or [f"{index}" for index in range(len(rows[0]))]
    if len(rows[0]) != len(names) or len(names) != len(signature.columns):
        raise InvalidInput(f"the model takes {len(signature.columns)} columns, got {len(rows[0])}", field=form)
    signature.check_rows(names, rows)


def _check_lengths(columns: Mapping[str, Any]) -> int:
    """The number of rows in {name: values}; 1 where no column is a list."""
    lengths = {name: len(values) for name, values in columns.items() if isinstance(values, list | tuple)}
    if len(set(lengths.values())) > 1:
        first, length = next(iter(lengths.items()))
        other = next(name for name, n in lengths.items() if n != length)
        row = min(length, lengths[other]) + 1
        raise InvalidInput(
            f"inputs: {shown_name(other)} has {lengths[other]} values where {shown_name(first)} has {length} "
            f"(they differ from row {row})",
            field=other,
        )
    for name, values in columns.items() if lengths else ():
        if name not in lengths:
            raise InvalidInput(f"inputs: {shown_name(name)} must be a list of values like the others", field=name)
        _check_even(values, f"inputs[{shown_name(name)}]")
    return next(iter(lengths.values()), 1)


def _check_even(rows: Sequence[Any], place: str) -> None:
    if not rows:
        raise InvalidInput("the input has no rows", field=place)
    first = _shape(rows[0], place, 1)
    if 0 in first:
        raise InvalidInput(f"{place}: row 1 is empty", field=place)
    if not first and not any(isinstance(row, list | tuple) for row in rows):
        return
    for number, row in enumerate(rows, 1):
        if _shape(row, place, number) != first:
            raise InvalidInput(f"{place}: row {number} has another shape than row 1", field=place, row=number)


def _shape(value: Any, place: str, row: int) -> tuple[int, ...]:
    """The lengths of evenly nested lists, outermost first; () for a scalar or an object."""
    if not isinstance(value, list | tuple):
        return ()
    if not any(isinstance(child, list | tuple) for child in value):
        return (len(value),)
    inner = _shape(value[0], place, row)
    if any(_shape(child, place, row) != inner for child in value):
        raise InvalidInput(f"{place}: row {row} holds lists of different lengths", field=place)
    return (len(value), *inner)


def check_names(names: Iterable[Any], place: str) -> None:
    """Column names: at least one, all strings, none twice; `place` begins the message."""
    names = list(names)
    if not names:
        raise InvalidInput(f"{place} has no columns")
    if not set(map(type, names)) <= {str}:
        odd = next(name for name in names if type(name) is not str)
        raise InvalidInput(f"{place}: column names must be strings, got {type(odd).__name__}", field="columns")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"{place}: column {shown_name(twice)} is given more than once", field=twice)


def _check_scalar(value: Any, place: str) -> None:
    kind = type(value)
    if kind not in PLAIN:
        raise InvalidInput(f"{place} is a {kind.__module__}.{kind.__qualname__}, which JSON cannot hold", field=place)
    if kind is float and not isfinite(value):
        raise InvalidInput(f"{place} is NaN or infinite, which JSON cannot hold; use null", field=place)


def all_finite(values: Iterable[Any]) -> bool:
    # A sum is finite only if every term is; an overflow merely sends the values to the exact check.
    return isfinite(sum([value for value in values if type(value) is float]))


def _dumps(value: Any, place: str, options: int = 0) -> bytes:
    try:
        return orjson.dumps(value, option=JSON_OPTIONS | options)
    except orjson.JSONEncodeError as error:
        raise _unencodable(value, place) or InvalidInput(f"{place} cannot be encoded as JSON", field=place) from error


def _unencodable(value: Any, place: str) -> InvalidInput | None:
    """What orjson refuses of strict JSON values: half a surrogate pair, an integer beyond 64 bits."""
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        return InvalidInput(f"{place} is text with a lone surrogate, which is not Unicode", field=place)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return InvalidInput(f"{place} is an integer beyond 64 bits", field=place)
    if isinstance(value, dict):
        keys = (_unencodable(key, f"a key of {place}") for key in value)
        below = (_unencodable(child, f"{place}[{shown_name(key)}]") for key, child in value.items())
        return next(filter(None, keys), None) or next(filter(None, below), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (_unencodable(child, f"{place}[{i}]") for i, child in enumerate(value))), None)
    return None


def _measured(encoded: EncodedInput, max_bytes: int) -> EncodedInput:
    _check_size(encoded.size, max_bytes)
    return encoded


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputTooLarge(f"the input has {size:,} bytes; at most {max_bytes:,} are allowed (PYFUNQ_MAX_INPUT_BYTES)")


def _from_pandas(frame: Any) -> "pa.Table":
    try:
        import pyarrow as pa
    except ImportError:
        raise NotConfigured("DataFrames need pyarrow: pip install 'pyfunq[analytics]'") from None
    arrays = []
    for name in frame.columns:
        try:
            arrays.append(pa.Array.from_pandas(frame[name]))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            raise InvalidInput(
                f"column {shown_name(name)} ({frame[name].dtype}) holds values of no one Arrow type",
                field=name,
            ) from None
    return pa.table(arrays, names=list(frame.columns))


def _are_records(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict)


def _differ(records: Sequence[Any]) -> bool:
    """Whether all are objects, but not all with the same keys."""
    return all(isinstance(record, dict) for record in records) and len({frozenset(record) for record in records}) > 1


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_tensor(signature: Signature | None) -> bool:
    return signature is not None and signature.is_tensor


def _too_deep(place: str) -> InvalidInput:
    return InvalidInput(f"{place} is nested deeper than {MAX_DEPTH} levels")


def _nan_as_null(constant: str) -> None:
    if constant != "NaN":
        _refuse_constant(constant)


def _refuse_constant(constant: str) -> None:
    raise InvalidInput(f"the input holds {constant}, which is not JSON; use null")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidInput(f"the key {shown_name(twice)} is given more than once in one object", field=twice)
    return unique


def _json_kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
