"""The ledger's SQL: named queries, and the migrations that make its tables."""

import re
from functools import cache
from importlib import resources

_HEAD = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def queries() -> dict[str, str]:
    """The statements of queries.sql by name."""
    parts = _HEAD.split((resources.files(__name__) / "queries.sql").read_text("utf-8"))
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def migrations() -> tuple[tuple[str, str], ...]:
    """(file name, text) of every migration, in the order in which they apply."""
    files = (f for f in (resources.files(__name__) / "migrations").iterdir() if f.name.endswith(".sql"))
    return tuple((f.name, f.read_text("utf-8")) for f in sorted(files, key=lambda f: f.name))
