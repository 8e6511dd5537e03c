"""Inputs like others before them: checked by column, or by what is known of those, and encoded as by `encode_input`."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import orjson

from pyfunq.errors import InvalidInput
from pyfunq.inputs import JSON_OPTIONS, PLAIN, EncodedInput, all_finite, check_names, encode_params
from pyfunq.signature import Signature

FEW = 8
"""Fewer inputs than this are encoded as quickly one by one."""

Rows = list[list[Any]]
_NUMBERS = {float, int}


def encode_alike(
    inputs: Sequence[Any], params: Mapping[str, Any] | None, *, signature: Signature | None, max_bytes: int
) -> list[EncodedInput] | None:
    """What `encode_input` gives for each of the inputs; None where it must be asked.

    It must for inputs that are not all `dataframe_split` or all `dataframe_records` with the same columns, for those
    whose checks look at more than one value at a time, and for any that is refused: it says what is wrong.
    """
    if len(inputs) < FEW or (signature is not None and (signature.is_tensor or signature.may_lack_columns)):
        return None
    try:
        found = _by_split(inputs) or _by_records(inputs)
        if found is None:
            return None
        columns, parts = found
        rows = [row for part in parts for row in part]
        check_names(columns, "the input")
        if not _are_plain(rows, len(columns)):
            return None
        if signature is not None:
            signature.check_columns(columns)
            signature.check_rows(columns, rows)
        encoded = _encode(columns, parts, encode_params(params))
    except (InvalidInput, orjson.JSONEncodeError):
        return None
    return encoded if max(one.size for one in encoded) <= max_bytes else None


def _by_split(inputs: Sequence[Any]) -> tuple[list[str], list[Rows]] | None:
    columns: Any = None
    parts: list[Rows] = []
    for one in inputs:
        split = one.get("dataframe_split") if type(one) is dict and len(one) == 1 else None
        if type(split) is not dict or len(split) != 2:
            return None
        names, part = split.get("columns"), split.get("data")
        if columns is None:
            columns = names
        if type(names) is not list or names != columns or type(part) is not list or not part:
            return None
        parts.append(part)
    return columns, parts


def _by_records(inputs: Sequence[Any]) -> tuple[list[str], list[Rows]] | None:
    columns: list[str] = []
    parts: list[Rows] = []
    for one in inputs:
        records = one.get("dataframe_records") if type(one) is dict and len(one) == 1 else None
        if type(records) is not list or not records or set(map(type, records)) != {dict}:
            return None
        if not columns:
            columns, keys = list(records[0]), records[0].keys()
            values = itemgetter(*columns, *columns[:1])  # of one key alone it would not give a tuple
        if list(records[0]) != columns or any(record.keys() != keys for record in records):
            return None
        parts.append([list(values(record)[:-1]) for record in records])
    return columns, parts


def _are_plain(rows: Rows, width: int) -> bool:
    """Whether all are lists of this many values, each of which strict JSON holds."""
    if set(map(type, rows)) != {list} or set(map(len, rows)) != {width}:
        return False
    for values in zip(*rows, strict=True):
        kinds = set(map(type, values))
        if not kinds <= PLAIN or (float in kinds and not all_finite(values)):
            return False
    return True


def _encode(columns: list[str], parts: Sequence[Rows], params: bytes | None) -> list[EncodedInput]:
    head = b'{"columns":' + orjson.dumps(columns, option=JSON_OPTIONS) + b',"data":'
    bodies = [orjson.dumps(part, option=JSON_OPTIONS) for part in parts]
    return [
        EncodedInput("split", b"%b%b}" % (head, body), params, len(part))
        for part, body in zip(parts, bodies, strict=True)
    ]


class LikeBefore:
    """Single inputs that come one after another with the same columns and nothing but numbers."""

    def __init__(self) -> None:
        # One value, replaced as a whole: inputs may be encoded in several threads.
        self._known: tuple[list[str], Signature | None, bytes] = ([], None, b"")

    def encode(self, one: Any, signature: Signature | None, max_bytes: int) -> EncodedInput | None:
        """What `encode_input` gives without params; None where it must be asked."""
        columns, known_signature, head = self._known
        split = one.get("dataframe_split") if type(one) is dict and len(one) == 1 else None
        if type(split) is not dict or len(split) != 2 or signature is not known_signature or not head:
            return None
        rows = split.get("data")
        if split.get("columns") != columns or type(split["columns"]) is not list or type(rows) is not list:
            return None
        width = len(columns)
        for row in rows:
            if type(row) is not list or len(row) != width or not set(map(type, row)) <= _NUMBERS or not all_finite(row):
                return None
        try:
            payload = b"%b%b}" % (head, orjson.dumps(rows, option=JSON_OPTIONS))
        except orjson.JSONEncodeError:
            return None
        return EncodedInput("split", payload, None, len(rows)) if rows and len(payload) <= max_bytes else None

    def remember(self, one: Any, encoded: EncodedInput, signature: Signature | None) -> None:
        """`encoded` is what `encode_input` gave for `one`."""
        if encoded.format != "split" or type(one) is not dict or "dataframe_split" not in one:
            return
        if signature is None or signature.takes_any_numbers:
            columns = list(one["dataframe_split"]["columns"])
            head = b'{"columns":' + orjson.dumps(columns, option=JSON_OPTIONS) + b',"data":'
            self._known = (columns, signature, head)
