"""CSV and JSON Lines files as Arrow tables: scanned whole for faults and types, then read block by block."""

import csv
import gzip
import io
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from types import NoneType
from typing import IO, TYPE_CHECKING, Any

import orjson

from pyfunq.errors import FileUnreadable, InvalidInput
from pyfunq.inputs import check_json, check_names, loads_strictly
from pyfunq.signature import (
    INTEGER_RANGES,
    Column,
    Signature,
    arrow_type,
    cast_values,
    may_be_absent,
    nulls_refused,
    shown_name,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from pyfunq.custom_ids import CustomIds

BLOCK_BYTES = 2 * 1024 * 1024
"""CSV is read in blocks of this size, of which Arrow holds up to about 36; no line can be longer."""
LINE_BYTES = 16 * 1024 * 1024
"""The longest line of JSONL."""
BLOCK_ROWS = 4_096
"""JSONL is read in blocks of this many rows."""
NULL_WORDS = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None")
"""What stands for null in a CSV column that is not text; in one of text only an empty field does."""

RowOf = Callable[[int, dict[str, Any]], dict[str, Any]]
"""The row in a line, of this number, that is this object."""
Tables = Callable[[int], Iterator["pa.Table"]]
"""Reads a source; where it can, in tables of a multiple of so many rows."""


def open_csv(path: Path, signature: Signature | None) -> tuple[int, Tables]:
    """The number of rows, and what reads them; see NULL_WORDS.

    Raises FileUnreadable, and InvalidInput for what does not fit the signature; lets pyarrow's errors and
    OSError pass.
    """
    _check_quotes(path)
    names = _csv_names(path)
    check_names(names, "the header")
    columns = _columns(names, signature)
    for name, column in zip(names, columns, strict=True):
        if not name:
            raise InvalidInput("the header has a column without a name")
        if column is not None and not column.is_scalar:
            raise InvalidInput(f"column {name!r} is {column.type}, which CSV cannot hold", field=name)
    rows, types = _scan_csv(path, names, columns)

    def tables(_rows: int) -> Iterator["pa.Table"]:
        import pyarrow as pa

        row = 1
        for table in _text_blocks(path, names):
            arrays = [
                _parsed(values, kind) if column is None else _parsed_column(values, name, column, row)
                for values, kind, name, column in zip(table.columns, types, names, columns, strict=True)
            ]
            row += table.num_rows
            yield pa.table(arrays, names=names)

    return rows, tables


def _columns(names: Sequence[str], signature: Signature | None) -> list[Column | None]:
    if signature is None:
        return [None] * len(names)
    signature.check_columns(names)
    return signature.aligned(names)


def _scan_csv(path: Path, names: list[str], columns: Sequence[Column | None]) -> tuple[int, list[Any]]:
    """The number of rows, and by column the Arrow type that holds its values where no signature says it."""
    import pyarrow as pa

    types: list[Any] = [None] * len(names)
    while True:
        rows, widened, nulls = 0, False, dict.fromkeys(names, 0)
        for table in _text_blocks(path, names):
            for i, (name, values, column) in enumerate(zip(names, table.columns, columns, strict=True)):
                if column is not None:
                    nulls[name] += _parsed_column(values, name, column, rows + 1).null_count
                else:
                    kind = _widened(values, types[i])
                    widened = widened or (types[i] is not None and kind != types[i])
                    types[i] = kind
            rows += table.num_rows
        if not widened:
            break
        # What was read before a column was widened must fit its new type too.
    check_nulls(nulls, rows, columns)
    return rows, [pa.float64() if kind is None else kind for kind in types]


def check_nulls(nulls: Mapping[str, int], rows: int, columns: Iterable[Column | None]) -> None:
    """Raises InvalidInput where a column has nulls (counted by its name, of so many rows) and may not."""
    for (name, count), column in zip(nulls.items(), columns, strict=True):
        if column and count and not column.holds_nulls and not (count == rows and may_be_absent(column)):
            raise nulls_refused(name, column)


def _widened(values: Any, current: Any) -> Any:
    """The narrowest type not narrower than `current` that holds these texts; None while all are null."""
    import pyarrow as pa

    if current == pa.string():
        return current
    whole, number, truth = pa.int64(), pa.float64(), pa.bool_()
    wider = {None: (whole, number, truth), whole: (whole, number), number: (number,), truth: (truth,)}
    for kind in wider[current]:
        try:
            parsed = _parsed(values, kind)
        except pa.ArrowInvalid:
            continue
        return current if parsed.null_count == len(parsed) else kind
    return pa.string()


def _parsed_column(texts: Any, name: str, column: Column, first_row: int) -> Any:
    """Texts as the Arrow type of a signature's column."""
    import pyarrow as pa

    try:
        typed = _typed(texts, column)
    except pa.ArrowInvalid:
        bad = _first_bad(texts, lambda part: _typed(part, column))
        got = "text that is not one"
        if column.type in INTEGER_RANGES and (number := _number(texts.slice(bad, 1))) is not None:
            got = "a value outside its range" if number.is_integer() else "a fraction"
        raise InvalidInput(
            f"column {shown_name(name)} is {column.label}, but got {got} (row {first_row + bad})", field=name
        ) from None
    target = arrow_type(column, typed.type)
    return typed if typed.type == target else cast_values(typed, target, name, column)


def _typed(texts: Any, column: Column) -> Any:
    """As `column`, but 32-bit numbers as 64-bit ones. Raises ArrowInvalid."""
    import pyarrow as pa

    if column.type == "binary":
        try:
            return pa.array([None if v is None else b64decode(v) for v in texts.to_pylist()], pa.binary())
        except ValueError:
            raise pa.ArrowInvalid("not base64") from None
    if column.type in INTEGER_RANGES:
        try:
            return _parsed(texts, pa.int64())
        except pa.ArrowInvalid:
            return _parsed(texts, pa.float64()).cast(pa.int64())
    return _parsed(texts, pa.float64() if column.type == "float" else arrow_type(column, pa.string()))


def _number(texts: Any) -> float | None:
    import pyarrow as pa

    try:
        number: float | None = _parsed(texts, pa.float64())[0].as_py()
    except pa.ArrowInvalid:
        return None
    return number


def _first_bad(values: Any, parse: Callable[[Any], Any]) -> int:
    import pyarrow as pa

    start, count = 0, len(values)
    while count > 1:
        half = count // 2
        try:
            parse(values.slice(start, half))
            start, count = start + half, count - half
        except pa.ArrowInvalid:
            count = half
    return start


def _parsed(texts: Any, kind: Any) -> Any:
    """Texts as Arrow type `kind`. Raises ArrowInvalid where one is none; an empty field is null already."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind == pa.string():
        return texts
    try:
        parsed = texts.cast(kind)
    except pa.ArrowInvalid:
        trimmed = pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"^\+", "")
        words = pc.is_in(trimmed, value_set=pa.array(NULL_WORDS))
        parsed = pc.if_else(words, pa.scalar(None, pa.string()), trimmed).cast(kind)
    if kind == pa.int64() and any(pc.any(pc.match_substring(texts, x)).as_py() for x in "xX"):
        raise pa.ArrowInvalid("Arrow reads 0x1F as an integer")
    if kind == pa.float64() and pc.any(pc.is_nan(parsed)).as_py():
        parsed = pc.if_else(pc.is_nan(parsed), pa.scalar(None, kind), parsed)
    return parsed


def _text_blocks(path: Path, names: list[str] | None) -> Iterator["pa.Table"]:
    """The CSV as strings, block by block; with `names` None, as Arrow infers it from its first block."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names or (), pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    zipped = "gzip" if path.suffix.lower() == ".gz" else None
    try:
        with pa.input_stream(str(path), compression=zipped) as stream:
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
                parse_options=pa_csv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
            )
            yield reader.schema.empty_table()
            yield from (pa.Table.from_batches([batch]) for batch in reader)
    except pa.ArrowInvalid:
        fault = _csv_fault(path) or f"is not CSV, or has a line longer than {BLOCK_BYTES // 2**20} MiB"
        raise FileUnreadable(f"{path} {fault}") from None


def _csv_names(path: Path) -> list[str]:
    return list(next(_text_blocks(path, None)).column_names)


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _check_quotes(path: Path) -> None:
    """Arrow reads a quote that is never closed as if it were; an odd number of quotes gives it away."""
    with _opened(path) as file:
        quotes = sum(block.count(b'"') for block in iter(lambda: file.read(1 << 20), b""))
    if quotes % 2 and (fault := _csv_fault(path)):
        raise FileUnreadable(f"{path} {fault}")


def _csv_fault(path: Path) -> str | None:
    """What is wrong with the CSV, by line: a slow reading for when something is."""
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        width, line = 0, 1
        try:
            for fields in reader:
                width = width or len(fields)
                if fields and len(fields) != width:
                    return f"is ragged: line {line} has {len(fields)} values where the header has {width}"
                line = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end" in str(error):
                return f"ends in the middle: the quote that line {line} opens is never closed"
            if "field limit" in str(error):
                return f"has a quote on line {line} that is never closed, or a field above 128 KiB"
        return None if width else "has no header"


def open_jsonl(path: Path, signature: Signature | None, ids: "CustomIds | None" = None) -> tuple[int, Tables]:
    """As `open_csv`. Every line must be an object, and all must have the same keys.

    With `ids`, to which they are then known, lines may hold a row and what it is called.
    """
    names: list[str] = []
    columns: list[Column | None] = []
    seen: list[_Seen] = []
    nulls: dict[str, int] = {}
    row = 1
    for names, rows in _record_blocks(path, None if ids is None else ids.row):
        if not seen:
            check_names(names, "line 1")
            columns = _columns(names, signature)
            seen, nulls = [_Seen(name) for name in names], dict.fromkeys(names, 0)
        if signature is not None:
            signature.check_rows(names, rows, first_row=row)
            for index in signature.absent(names, rows):
                nulls[names[index]] += len(rows)
        for column, one, values in zip(columns, seen, zip(*rows, strict=True), strict=True):
            if column is None or not column.is_scalar:
                one.add(values)
        row += len(rows)
    check_nulls(nulls, row - 1, columns)
    if ids is not None:
        ids.check()
    types = [_json_type(column, one) for column, one in zip(columns, seen, strict=True)]

    def tables(_rows: int) -> Iterator["pa.Table"]:
        import pyarrow as pa

        bare = None if ids is None else lambda _, record: ids.bare(record)
        for _, rows in _record_blocks(path, bare):
            arrays = [_json_array(v, kind) for v, kind in zip(zip(*rows, strict=True), types, strict=True)]
            yield pa.table(arrays, names=names)

    return row - 1, tables


class _Seen:
    """The types of the JSON values of one column."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kinds: set[type] = set()
        self.nested: Any = None

    def add(self, values: Sequence[Any]) -> None:
        import pyarrow as pa

        kinds = set(map(type, values)) - {NoneType}
        if kinds == {int} and max(value for value in values if value is not None) >= 2**63:
            kinds.add(float)
        self.kinds |= kinds
        if len(self.kinds) > 1 and self.kinds != {int, float}:
            found = " and ".join(sorted(kind.__name__ for kind in self.kinds))
            raise InvalidInput(f"column {shown_name(self.name)} mixes values of types {found}", field=self.name)
        if self.kinds & {list, dict}:
            check_json(list(values), f"column {shown_name(self.name)}")
            try:
                found_type = pa.infer_type(values)
                both = [pa.schema([("x", t)]) for t in (self.nested or found_type, found_type)]
                self.nested = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except pa.ArrowException:
                raise InvalidInput(
                    f"column {shown_name(self.name)} holds values of no one Arrow type", field=self.name
                ) from None


def _json_type(column: Column | None, seen: _Seen) -> Any:
    import pyarrow as pa

    if column is not None and column.is_scalar:
        return arrow_type(column, pa.null())
    if seen.nested is not None:
        return seen.nested
    if float in seen.kinds:
        return pa.float64()
    plain = {int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    return plain.get(next(iter(seen.kinds), NoneType), pa.null())


def _json_array(values: Sequence[Any], kind: Any) -> Any:
    """Checked JSON values as an Arrow array of type `kind`."""
    import pyarrow as pa

    convert: Callable[[Any], Any] | None = None
    if pa.types.is_timestamp(kind):
        convert = datetime.fromisoformat
    elif pa.types.is_binary(kind):
        convert = b64decode
    elif pa.types.is_floating(kind) and int in map(type, values):
        convert = float
    elif pa.types.is_integer(kind) and float in map(type, values):
        convert = int
    if convert is not None:
        values = [None if value is None else convert(value) for value in values]
    return pa.array(values, kind)


def _record_blocks(path: Path, row_of: RowOf | None = None) -> Iterator[tuple[list[str], list[Any]]]:
    """The names of JSONL's columns and its rows, BLOCK_ROWS at a time. Every line must have the same keys."""
    names: list[str] = []
    block: list[Any] = []
    keys: Any = None
    values: Callable[[dict[str, Any]], Any] = dict.values
    with _opened(path) as file:
        lines = iter(lambda: file.readline(LINE_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.isspace() or not line:
                continue
            record = _record(path, number, line)
            if row_of is not None:
                record = row_of(number, record)
            if keys is None:
                names, keys = list(record), record.keys()
                values = itemgetter(*names) if len(names) > 1 else (lambda one: tuple(one.values()))
            if record.keys() != keys:
                raise FileUnreadable(f"{path}: line {number} has other keys than the first line")
            block.append(values(record))
            if len(block) == BLOCK_ROWS:
                yield names, block
                block = []
    if block:
        yield names, block


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row = record.get("row")
    return row if isinstance(row, dict) else {}


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    if len(line) > LINE_BYTES:
        raise FileUnreadable(f"{path}: line {number} is longer than {LINE_BYTES // 2**20} MiB")
    try:
        record = orjson.loads(line)
        if isinstance(record, dict) and line.count(b":") > len(record) + len(_row(record)):
            loads_strictly(line.decode())
    except orjson.JSONDecodeError:
        if not line.endswith(b"\n"):
            raise FileUnreadable(f"{path} ends in the middle of line {number}, or that line is not JSON") from None
        raise FileUnreadable(f"{path}: line {number} is not valid JSON") from None
    except InvalidInput as error:
        raise FileUnreadable(f"{path}: line {number}: {error.message}") from None
    if not isinstance(record, dict):
        raise FileUnreadable(f"{path}: line {number} is not a JSON object")
    return record
