"""What a job's error record says of an exception: its type and message, without the job's input values."""

from __future__ import annotations

import binascii
import datetime as dt
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import chain
from math import isfinite
from typing import Any

import orjson
import pyarrow as pa
from mlflow.exceptions import MlflowException

MAX_LENGTH = 500
HIDDEN = "…"

_MAX_READ = 20_000
_MLFLOW_DATA = re.compile(r"of data '.*' with schema", re.DOTALL)
_HINTED = ("Failed to validate data against type hint", "Failed to validate the input data against the type hint")
# Within a `repr`, so that what was a line break is two characters.
_HINTED_FIELD = re.compile(r"\\n([\w.]+)\\n  (.*?) \[type=")
_HINTED_TYPE = re.compile(r"Expected (?:type )?\w+, but got \w+")
_WORD = re.compile(r"\w{3,}")
_SHORT_QUOTED = re.compile(r"(['\"])([^'\"]{1,2})(?=\1)")
_TIME = re.compile(r"\d{4}-\d\d-\d\d")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# A number that is no part of a name such as `col_5` or `x2`.
_NUMBER = re.compile(r"(?<![\w.])[-+]?(\d+)(\.\d*)?([eE][-+]?\d+)?(?!\w)")


def model_error_text(exc: BaseException, inputs: Sequence[tuple[str, bytes | pa.Table]]) -> str:
    """`Type: message` on one line of at most 500 characters, with the values of `inputs` replaced by `…`.

    `inputs` are the (format, payload or table) of the jobs in the call. Hidden are: every text value (as it is, as
    `repr` writes it, in any case); every word of three or more letters of one, also where the message cuts
    it short before `...`; a shorter value where it stands in quotes; and every number that is an input
    value, or one rounded to the digits shown. A value that the model first transformed (scaled, hashed,
    translated) cannot be known here and is not hidden.
    """
    message = _MLFLOW_DATA.sub("with schema", _message(exc))
    if message.startswith(_HINTED):
        message = _hinted(message)
    if len(message) > _MAX_READ:
        message = message[:_MAX_READ] + "..."
    texts, numbers = _values(inputs)
    message = _hide_texts(" ".join(message.split()), texts)
    message = _NUMBER.sub(lambda found: _hide_number(found, numbers), message)
    message = "".join(c if c.isprintable() else " " for c in message)
    text = f"{type(exc).__name__}: {message}" if message else type(exc).__name__
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"


def is_refusal(exc: BaseException) -> bool:
    """Whether MLflow found that the input is not of the model's signature or type hint, before the model saw it."""
    if not isinstance(exc, MlflowException):
        return False
    return getattr(exc, "error_class", None) == "SCHEMA_ENFORCEMENT_FAILED" or _message(exc).startswith(_HINTED)


def _hinted(message: str) -> str:
    """Which fields of which type hint are wrong, without the input that MLflow tells beside each."""
    head = message.partition(", invalid elements:")[0].partition(". Error:")[0]
    wrong = [f"{field}: {text}" for field, text in _HINTED_FIELD.findall(message)] or _HINTED_TYPE.findall(message)
    return f"{head}: {'; '.join(dict.fromkeys(wrong))}" if wrong else message


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return "its message cannot be read"


def _hide_texts(message: str, texts: set[str]) -> str:
    folded = {text.casefold() for text in texts}
    message = _SHORT_QUOTED.sub(lambda q: q[1] + HIDDEN if q[2].casefold() in folded else q[0], message)
    lowered = message.casefold()
    present = sorted((text for text in texts if len(text) >= 3 and text.casefold() in lowered), key=len, reverse=True)
    for text in present:
        message = re.sub(re.escape(text), HIDDEN, message, flags=re.IGNORECASE)
    words = {word for text in folded for word in _WORD.findall(text)}

    def hide(found: re.Match[str]) -> str:
        word = found[0].casefold()
        rest = message[found.end() : found.end() + 3]
        is_cut = rest.startswith(("...", "…")) and any(known.startswith(word) for known in words)
        return HIDDEN if is_cut or word in words else found[0]

    return _WORD.sub(hide, message)


def _hide_number(found: re.Match[str], numbers: list[float]) -> str:
    value = float(found[0])
    # Half a unit of the last digit shown; a whole number is only hidden where it is a value.
    digits = len(found[2] or ".") - 1
    exponent = int((found[3] or "e0")[1:])
    margin = 0.5000001 * 10.0 ** min(exponent - digits, 300) if found[2] or found[3] else 0.0
    place = bisect_left(numbers, value - margin)
    return HIDDEN if place < len(numbers) and numbers[place] <= value + margin else found[0]


def _values(inputs: Sequence[tuple[str, bytes | pa.Table]]) -> tuple[set[str], list[float]]:
    """The distinct texts (white space as in the message) and the sorted numbers among the inputs."""
    texts: set[str] = set()
    numbers: set[float] = set()
    for value in chain.from_iterable(_cells(_decoded(*encoded)) for encoded in inputs):
        if isinstance(value, str):
            texts.update(_forms(value))
        elif isinstance(value, bytes):
            texts.add(repr(value)[2:-1])
        elif isinstance(value, dt.date | dt.time | dt.timedelta):
            texts.update(_forms(value.isoformat() if not isinstance(value, dt.timedelta) else str(value)))
        elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            numbers.update((float(value), -float(value)))
    return texts - {""}, sorted(number for number in numbers if isfinite(number))


def _forms(text: str) -> Iterator[str]:
    """How a text may look in a message: also as `repr`, as a parsed time, as decoded base64."""
    yield " ".join(text.split())
    yield " ".join(repr(text)[1:-1].split())
    if _TIME.match(text):
        yield text[:10]
        yield text.replace("T", " ").removesuffix("Z")
    if len(text) >= 4 and _BASE64.fullmatch(text):
        with suppress(binascii.Error):
            yield repr(binascii.a2b_base64(text))[2:-1]


def _decoded(format: str, payload: bytes | pa.Table) -> Any:
    if isinstance(payload, pa.Table):
        return payload
    if format == "arrow":
        return pa.ipc.open_stream(payload).read_all()
    body = orjson.loads(payload)
    return body.get("data", body) if isinstance(body, dict) else body


def _cells(value: Any) -> Iterator[Any]:
    if isinstance(value, pa.Table):
        for column in value.columns:
            yield from _cells(column.unique().to_pylist() if _is_flat(column.type) else column.to_pylist())
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_cells, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_cells, value))
    else:
        yield value


def _is_flat(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_string(type_))
