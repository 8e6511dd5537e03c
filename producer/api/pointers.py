"""Where in a request's body the thing is that an error names: JSON pointers (RFC 6901)."""

import re
from collections.abc import Mapping
from typing import Any

from producer.api.problems import escaped

_STEPS = re.compile(r"""\[(?:(\d+)|'([^']*)'|"([^"]*)")\]""")
"""As `pyfunq.inputs` writes the place of a value: `inputs['instances'][0]`."""


def _along(begin: str, steps: list[tuple[str, ...]], body: Mapping[str, Any]) -> str:
    """As far as the steps lead: names are cut where they are very long."""
    pointer, there = "", body if begin not in body else {begin: body[begin]}
    for step in ([("", begin, "")] if begin in body and steps[0][1] not in body else []) + steps:
        key = int(step[0]) if step[0] else step[1] or step[2]
        try:
            there = there[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            break
        pointer += f"/{escaped(str(key))}"
    return pointer


def pointer_to(field: str, body: Mapping[str, Any], row: int | None = None) -> str:
    """`field` is a column's name, a part of an input, or a field of the request; `row` counts from 1."""
    if field in body:
        return _in_rows(f"/{escaped(field)}", body[field], row)
    if steps := _STEPS.findall(field):
        return _along(field.partition("[")[0], steps, body)
    split = body.get("dataframe_split")
    if isinstance(split, dict):
        return _in_split(field, split, row)
    for form in ("dataframe_records", "instances", "inputs"):
        rows = body.get(form)
        if isinstance(rows, list) and rows:
            return _in_records(form, field, rows, row)
        if isinstance(rows, dict):
            return _in_rows(f"/{form}/{escaped(field)}", rows[field], row) if field in rows else f"/{form}"
    return f"/{escaped(field)}"


def _in_split(field: str, split: Mapping[str, Any], row: int | None) -> str:
    columns = split.get("columns")
    if isinstance(columns, list) and field in columns:
        return f"/dataframe_split/columns/{columns.index(field)}"
    if field in ("columns", "data", "index"):
        return _in_rows(f"/dataframe_split/{field}", split.get(field), row)
    return "/dataframe_split/columns"


def _in_records(form: str, field: str, rows: list[Any], row: int | None) -> str:
    """A record that has not the field is named itself; a row that is no record likewise."""
    index = row - 1 if row and row <= len(rows) else 0
    found = rows[index]
    if isinstance(found, dict):
        return f"/{form}/{index}/{escaped(field)}" if field in found else f"/{form}/{index}"
    return f"/{form}/{index}" if row else f"/{form}"


def _in_rows(place: str, values: Any, row: int | None) -> str:
    return f"{place}/{row - 1}" if row and isinstance(values, list) and row <= len(values) else place
