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


def pointer_to(field: str, body: Mapping[str, Any]) -> str:
    """`field` is a column's name, a part of an input, or a field of the request."""
    if field in body:
        return f"/{escaped(field)}"
    if steps := _STEPS.findall(field):
        return _along(field.partition("[")[0], steps, body)
    split = body.get("dataframe_split")
    if isinstance(split, dict):
        columns = split.get("columns")
        if isinstance(columns, list) and field in columns:
            return f"/dataframe_split/columns/{columns.index(field)}"
        return f"/dataframe_split/{field}" if field in ("columns", "data", "index") else "/dataframe_split/columns"
    for form in ("dataframe_records", "instances", "inputs"):
        rows = body.get(form)
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            return f"/{form}/0/{escaped(field)}" if field in rows[0] else f"/{form}/0"
        if isinstance(rows, dict):
            return f"/{form}/{escaped(field)}" if field in rows else f"/{form}"
    return f"/{escaped(field)}"
