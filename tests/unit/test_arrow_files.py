"""Arrow files and streams as backlogs: the same rows from each, nothing from what is damaged or would burst."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pyfunq import arrow_files
from pyfunq.backlog import open_backlog
from pyfunq.errors import FileUnreadable, InvalidInput
from pyfunq.signature import Signature

COLUMNS = {"x": [1.0, 2.0, 3.0, 4.0, 5.0], "name": ["a", "b", None, "d", "e"], "list": [[1], [], [2, 3], None, [4]]}
MAKERS = {".arrow": pa.ipc.new_file, ".arrows": pa.ipc.new_stream, ".feather": pa.ipc.new_file}


def written(path: Path, columns: dict[str, Any], *, chunk: int = 2, compression: str | None = None) -> Path:
    table = pa.table(columns)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with path.open("wb") as file, MAKERS[path.suffix](file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return path


def rows(path: Path, signature: Signature | None = None) -> list[dict[str, Any]]:
    chunks = open_backlog(path, signature=signature).chunks(3, 1 << 20)
    return [row for chunk in chunks for row in pa.ipc.open_stream(chunk.payload).read_all().to_pylist()]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("suffix", MAKERS)
def test_every_form_gives_its_rows(tmp_path: Path, suffix: str, compression: str | None) -> None:
    columns = {**COLUMNS, "kind": pa.array(["u", "v", "u", "v", "u"]).dictionary_encode()}
    path = written(tmp_path / f"rows{suffix}", columns, compression=compression)
    assert open_backlog(path).rows == 5
    assert rows(path) == pa.table(columns).to_pylist()


@pytest.mark.parametrize("suffix", MAKERS)
def test_what_ends_in_the_middle_is_refused(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"rows{suffix}", COLUMNS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileUnreadable, match="damaged or ends in the middle"):
        open_backlog(path)


def test_offsets_that_lead_out_of_a_buffer_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.arrows", {"name": ["abc", "defg"] * 4}, chunk=8)
    whole = path.read_bytes()
    good = b"".join(n.to_bytes(4, "little") for n in (0, 3, 7, 10, 14))
    assert whole.count(good) == 1
    path.write_bytes(whole.replace(good, good[:8] + (1 << 30).to_bytes(4, "little") + good[12:]))
    with pytest.raises(FileUnreadable, match="damaged"):
        open_backlog(path)


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_small_file_that_would_become_a_large_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(arrow_files, "INFLATED_BYTES", 1 << 20)
    path = written(tmp_path / f"rows{suffix}", {"x": [0.0] * 200_000}, chunk=200_000, compression="zstd")
    assert path.stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    with pytest.raises(FileUnreadable, match="when inflated"):
        open_backlog(path)
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert open_backlog(written(path, {"x": [0.0] * 200_000}, chunk=10_000, compression="zstd")).rows == 200_000


def test_the_signature_is_held_for_every_row(tmp_path: Path) -> None:
    signature = Signature.from_json('[{"name": "x", "type": "long", "required": true}]')
    path = written(tmp_path / "rows.arrow", {"x": pa.array([1, 2, 3, 4, None])})
    with pytest.raises(InvalidInput, match="'x'"):
        open_backlog(path, signature=signature)
    assert rows(written(path, {"x": pa.array([1, 2, 3], pa.int16())}), signature) == [{"x": 1}, {"x": 2}, {"x": 3}]
