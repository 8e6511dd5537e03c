"""What rows are called: taken from lines, each once, given again in their order."""

from contextlib import closing
from pathlib import Path

import pytest

from pyfunq import custom_ids
from pyfunq.custom_ids import CustomIds, unpacked
from pyfunq.errors import InvalidInput


def line(name: object) -> dict[str, object]:
    return {"custom_id": name, "row": {"x": 1}}


def test_names_come_back_in_order_whatever_they_hold(tmp_path: Path) -> None:
    names = ["a b", "ä\n", "\x00", '"quoted"', "\u2028", "x" * 200]
    with closing(CustomIds(tmp_path)) as ids:
        assert [ids.row(number, line(name)) for number, name in enumerate(names, 1)] == [{"x": 1}] * 6
        ids.check()
        packed = [ids.packed(4), ids.packed(2)]
    assert [unpacked(part) for part in packed if part] == [names[:4], names[4:]]


def test_one_that_comes_twice_is_found_wherever_its_lines_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_ids, "_HASHES_AT_ONCE", 10)
    with closing(CustomIds(tmp_path)) as ids:
        for number in range(1, 101):
            ids.row(2 * number, line(f"row {number % 99}"))
        with pytest.raises(InvalidInput, match="lines 2 and 200 have the same"):
            ids.check()


def test_rows_without_names_are_as_they_are(tmp_path: Path) -> None:
    with closing(CustomIds(tmp_path)) as ids:
        assert ids.row(1, {"custom_id": "a", "x": 1}) == {"custom_id": "a", "x": 1}
        assert ids.row(2, {"custom_id": "a", "row": 1}) == {"custom_id": "a", "row": 1}
        with pytest.raises(InvalidInput, match="line 3 has a custom_id"):
            ids.row(3, line("a"))
        ids.check()
        assert ids.packed(2) is None
