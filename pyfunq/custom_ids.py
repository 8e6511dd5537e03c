"""What callers call the rows of a JSON Lines file: taken from its lines, each once, kept beside the rows' results."""

import zlib
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from pyfunq.errors import InvalidInput

LONGEST = 200
"""Characters of such a name."""
_KEYS = frozenset({"custom_id", "row"})
_HASHES_AT_ONCE = 64 * 1024


class CustomIds:
    """The names in a file of lines that are all `{"custom_id": name, "row": {...}}`, or all rows without a name.

    They are kept in files in a folder of the caller's, so that memory does not grow with them. Use it from one thread
    at a time: every line in turn goes through `row`, then `check` says whether a name came twice, then `packed` gives
    the names in the same order.
    """

    def __init__(self, folder: Path) -> None:
        self._named: bool | None = None
        self._stack = ExitStack()
        self._names = self._stack.enter_context((folder / "custom_ids").open("w+b"))
        self._hashes = folder / "custom_id_hashes"
        self._hash_file = self._stack.enter_context(self._hashes.open("wb"))
        self._held = array("q")

    def row(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
        """The row in line `number`. Raises InvalidInput where the line is not like the first, or its name is none."""
        named = record.keys() == _KEYS and isinstance(record["row"], dict)
        if self._named is None:
            self._named = named
        if named != self._named:
            has, have = ("a", "none") if named else ("no", "one")
            raise InvalidInput(
                f"line {number} has {has} custom_id beside its row, the first has {have}", field="custom_id"
            )
        if not named:
            return record
        name = record["custom_id"]
        if not isinstance(name, str) or not 1 <= len(name) <= LONGEST:
            raise InvalidInput(f"line {number}: a custom_id is a text of 1 to {LONGEST} characters", field="custom_id")
        self._names.write(b"%d %b\n" % (number, orjson.dumps(name)))
        self._held.append(hash(name))
        if len(self._held) == _HASHES_AT_ONCE:
            self._spill()
        return self.bare(record)

    def bare(self, record: dict[str, Any]) -> dict[str, Any]:
        """The row in a line that was read before."""
        row: dict[str, Any] = record["row"] if self._named else record
        return row

    def check(self) -> None:
        """Raises InvalidInput for a name that came twice, with both lines."""
        self._spill()
        self._names.flush()
        self._names.seek(0)
        if self._named and (twice := self._twice()):
            seen: dict[str, bytes] = {}
            for number, text in self._lines():
                name = orjson.loads(text)
                if hash(name) in twice:
                    if name in seen:
                        lines = f"lines {seen[name].decode()} and {number.decode()}"
                        raise InvalidInput(f"{lines} have the same custom_id", field="custom_id")
                    seen[name] = number
            self._names.seek(0)

    def packed(self, rows: int) -> bytes | None:
        """The next names, of so many rows; None where rows have none."""
        if not self._named:
            return None
        names = (self._names.readline().split(b" ", 1)[1].rstrip(b"\n") for _ in range(rows))
        return zlib.compress(b"[%b]" % b",".join(names), 1)

    def close(self) -> None:
        self._stack.close()

    def _spill(self) -> None:
        self._hash_file.write(self._held.tobytes())
        self._hash_file.flush()
        del self._held[:]

    def _lines(self) -> Iterator[tuple[bytes, bytes]]:
        """(line number, name as JSON)"""
        for line in self._names:
            number, _, text = line.partition(b" ")
            yield number, text

    def _twice(self) -> frozenset[int]:
        """Hashes that more than one name has; they are sorted in their file, not in memory."""
        import numpy as np

        hashes = np.memmap(self._hashes, np.int64, "r+")
        hashes.sort()
        found: set[int] = set()
        for start in range(0, len(hashes) - 1, _HASHES_AT_ONCE):
            part = hashes[start : start + _HASHES_AT_ONCE + 1]
            found.update(part[:-1][part[1:] == part[:-1]].tolist())
        return frozenset(found)


def unpacked(names: bytes) -> list[str]:
    """What `CustomIds.packed` packed."""
    texts: list[str] = orjson.loads(zlib.decompress(names))
    return texts
