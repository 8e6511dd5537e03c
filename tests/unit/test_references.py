"""Rows by reference: whatever the layout of the files, they are the rows of by value, or the jobs say what changed."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfunq.backlog import open_backlog
from pyfunq.entries import ClaimedJob
from pyfunq.errors import (
    FileUnreadable,
    InputChanged,
    InputNotAllowed,
    InputUnavailable,
    InvalidInput,
    NotConfigured,
    PyFunQError,
)
from pyfunq.ids import new_id
from pyfunq.input_roots import InputRoots
from pyfunq.inputs import EncodedInput
from pyfunq.references import Reference, ReferencedRows, open_references
from pyfunq.signature import Signature
from worker.references import ReferenceReader

MIB = 1 << 20


class Model:
    def __init__(self, signature: str | None = None) -> None:
        self.signature = signature


def specs(**types: str) -> str:
    """`name="type"`; `name="type?"` is optional."""
    return json.dumps([{"name": n, "type": t.rstrip("?"), "required": not t.endswith("?")} for n, t in types.items()])


def job(chunk: EncodedInput) -> ClaimedJob:
    return ClaimedJob(
        id=new_id(),
        attempt=1,
        model_uri="models:/m/1",
        queue="bulk",
        rows=chunk.rows,
        input_format=chunk.format,
        input=chunk.payload,
        params=chunk.params,
        version_id=None,
        confidence=False,
    )


def write(path: Path, table: pa.Table, group_rows: list[int] | int = 1000, **options: Any) -> Path:
    sizes = [group_rows] * (table.num_rows // group_rows + 1) if isinstance(group_rows, int) else group_rows
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        offset = 0
        for size in sizes:
            writer.write_table(table.slice(offset, size), row_group_size=max(1, size))
            offset += size
    return path


def numbers(rows: int, start: int = 0) -> pa.Table:
    x = np.arange(start, start + rows)
    return pa.table({"x": x, "y": x / 2, "s": pa.array([f"t{i}" for i in x], pa.string())})


class Place:
    """A root, and what reads it as a worker does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.roots = InputRoots([str(root)])
        self.reader = ReferenceReader(self.roots)

    def open(self, source: Any, signature: str | None = None) -> ReferencedRows:
        return open_references(source, self.roots, signature=Signature.from_json(signature) if signature else None)

    def read(self, chunk: EncodedInput, signature: str | None = None) -> pa.Table:
        table = self.reader.read(job(chunk), Model(signature))  # type: ignore[arg-type]
        assert isinstance(table, pa.Table)
        assert table.num_rows == chunk.rows
        return table


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.reader.close()


def references(chunks: Iterator[EncodedInput]) -> list[Reference]:
    return [Reference.of(chunk.payload) for chunk in chunks]


LAYOUTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=3).filter(
    lambda files: any(map(sum, files))
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=LAYOUTS, chunk_rows=st.integers(1, 12), max_bytes=st.sampled_from([200, MIB]), order=st.randoms())
def test_any_layout_gives_the_rows_of_by_value_in_their_order(
    tmp_path: Path, files: list[list[int]], chunk_rows: int, max_bytes: int, order: Any
) -> None:
    folder = tmp_path / str(new_id())
    folder.mkdir()
    start, whole = 0, []
    for number, groups in enumerate(files):
        whole.append(numbers(sum(groups), start))
        write(folder / f"{number}.parquet", whole[-1], groups)
        start += sum(groups)
    place = Place(tmp_path)
    chunks = list(place.open(folder).chunks(chunk_rows, max_bytes))
    assert all(chunk.rows <= chunk_rows and chunk.format == "reference" for chunk in chunks)
    shuffled = list(enumerate(chunks))
    order.shuffle(shuffled)
    for turn in (list(enumerate(chunks)), shuffled):  # as one process gets them, and as retries and others do
        tables = {index: place.read(chunk) for index, chunk in turn}
        assert pa.concat_tables(tables[i] for i in range(len(chunks))).equals(pa.concat_tables(whole))
    place.reader.close()


@pytest.mark.parametrize(
    ("groups", "chunk_rows", "cut"),
    [
        ([10], 4, [(0, 1, 0, 4), (0, 1, 4, 4), (0, 1, 8, 2)]),
        ([4, 4, 4], 9, [(0, 2, 0, 8), (2, 1, 0, 4)]),
        ([3, 10, 3, 3], 6, [(0, 1, 0, 3), (1, 1, 0, 6), (1, 1, 6, 4), (2, 2, 0, 6)]),
        ([5, 0, 5], 5, [(0, 1, 0, 5), (2, 1, 0, 5)]),
    ],
)
def test_large_groups_are_parted_and_small_ones_joined(
    place: Place, groups: list[int], chunk_rows: int, cut: list[tuple[int, int, int, int]]
) -> None:
    path = write(place.root / "a.parquet", numbers(sum(groups)), groups)
    found = references(place.open(path).chunks(chunk_rows, MIB))
    assert [(*r.groups, r.offset, r.rows) for r in found] == cut


def test_chunks_are_bounded_in_bytes(place: Place) -> None:
    wide = pa.table({f"c{i}": np.zeros(1000) for i in range(50)})  # a few bytes in the file, 400,000 in memory
    found = references(place.open(write(place.root / "a.parquet", wide)).chunks(1000, 100_000))
    assert len(found) == 4
    assert {r.rows for r in found} == {250}


def test_a_large_row_group_is_decoded_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(place.root / "a.parquet", numbers(1000), 1000)
    begun: list[int] = []
    read = pq.ParquetFile.iter_batches

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        begun.append(1)
        return read(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    chunks = list(place.open(path).chunks(90, MIB))
    for chunk in chunks:
        place.read(chunk)
    assert len(begun) == 1
    for chunk in chunks[::2]:  # the other half goes to another process
        place.read(chunk)
    assert len(begun) == 2


def test_only_the_columns_of_the_model_are_read_and_in_its_types(place: Place) -> None:
    table = numbers(20).append_column("id", pa.array(range(20))).append_column("z", pa.nulls(20, pa.int64()))
    path = write(place.root / "a.parquet", table, 7)
    signature = specs(y="float", x="double", z="long?")
    (chunk,) = place.open(path, signature).chunks(100, MIB)
    read = place.read(chunk, signature)
    assert read.schema == pa.schema([("x", pa.float64()), ("y", pa.float32())])
    by_value = path.with_name("b.parquet")
    write(by_value, table.drop_columns(["id", "s"]), 7)
    (stored,) = open_backlog(by_value, signature=Signature.from_json(signature)).chunks(100, MIB)
    assert read.equals(pa.ipc.open_stream(stored.payload).read_all())


def test_what_pandas_wrote_as_an_index_is_no_column(place: Place) -> None:
    path = place.root / "a.parquet"
    pd.DataFrame({"x": [1.0, 2.0]}, index=pd.Index(["a", "b"], name="key")).to_parquet(path)
    (chunk,) = place.open(path).chunks(100, MIB)
    assert place.read(chunk).column_names == ["x"]


def refusals(place: Place) -> dict[str, tuple[type[PyFunQError], str]]:
    root = place.root
    write(root / "good.parquet", numbers(3))
    write(root / "null.parquet", pa.table({"x": pa.array([1, None])}))
    (root / "empty.parquet").touch()
    (root / "text.csv").write_text("x\n1\n")
    data = (root / "good.parquet").read_bytes()
    (root / "cut.parquet").write_bytes(data[: len(data) // 2])
    write(root / "none.parquet", numbers(0))
    for name in ("nothing", "nested", "nested/within", "mixed"):
        (root / name).mkdir()
    write(root / "nested" / "a.parquet", numbers(1))
    write(root / "mixed" / "a.parquet", pa.table({"x": [1]}))
    write(root / "mixed" / "b.parquet", pa.table({"x": [1], "y": [1.0]}))
    return {
        "missing.parquet": (FileUnreadable, "does not exist"),
        "empty.parquet": (FileUnreadable, "is empty"),
        "none.parquet": (FileUnreadable, "has no rows"),
        "text.csv": (FileUnreadable, "only Parquet"),
        "cut.parquet": (FileUnreadable, "damaged"),
        "nothing": (FileUnreadable, "holds no .parquet"),
        "nested": (FileUnreadable, "within"),
        "mixed": (InvalidInput, "other columns"),
        "null.parquet": (InvalidInput, "nulls"),
    }


def test_what_does_not_fit_is_refused_before_anything_is_submitted(place: Place) -> None:
    for name, (kind, says) in refusals(place).items():
        with pytest.raises(kind, match=says) as caught:
            place.open(place.root / name, specs(x="long", y="double?"))
        assert name in caught.value.message
    with pytest.raises(InvalidInput, match="'q' is missing"):
        place.open(place.root / "good.parquet", specs(q="long"))
    with pytest.raises(InvalidInput, match="path or URL"):
        place.open(pd.DataFrame({"x": [1]}))
    with pytest.raises(InputNotAllowed):
        place.open("/etc/passwd")


def test_a_folder_leaves_out_what_is_hidden(place: Place) -> None:
    for name in ("b.parquet", "a.pq", "_metadata.parquet", ".c.parquet"):
        write(place.root / name, numbers(2, ord(name[0])))
    (place.root / "_SUCCESS").touch()
    (place.root / "_logs").mkdir()
    opened = place.open(place.root)
    assert [Path(r.place).name for r in references(opened.chunks(10, MIB))] == ["a.pq", "b.parquet"]
    assert opened.rows == 4


def rewritten(path: Path) -> None:
    write(path, numbers(30, 1000), 10)


def in_place(path: Path) -> None:
    """Other values under the same footer, size and, but for a moment, time."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[10:20] = bytes(10)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns + 1000))


def same_time(path: Path) -> None:
    """Another content of the same size and time, as its footer says."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    least = (100).to_bytes(8, "little")
    data[data.rindex(least) : data.rindex(least) + 8] = (99).to_bytes(8, "little")
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [rewritten, in_place, same_time, Path.unlink])
@pytest.mark.parametrize("begun", [True, False], ids=["half read", "not yet read"])
def test_a_file_that_changed_fails_with_that_reason(place: Place, change: Any, begun: bool) -> None:
    path = write(place.root / "a.parquet", numbers(30, 100), 10, compression="none")
    first, second = place.open(path).chunks(20, MIB)
    if begun:
        place.read(first)
    change(path)
    with pytest.raises(InputChanged, match=r"a\.parquet (was changed after|is gone since) it was submitted") as caught:
        place.read(second)
    assert not caught.value.retryable


def test_trouble_that_may_pass_is_no_change(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(place.root / "sub.parquet", numbers(3))
    (chunk,) = place.open(path).chunks(10, MIB)
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), TimeoutError(110, "")):

        def fail(_: str, error: OSError = error) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(place.roots, "open", fail)
            with pytest.raises(InputUnavailable) as caught:
                place.read(chunk)
        assert caught.value.retryable
    assert place.read(chunk).num_rows == 3


def test_a_worker_believes_no_reference(place: Place) -> None:
    path = write(place.root / "a.parquet", numbers(30), 10)
    (chunk,) = place.open(path).chunks(100, MIB)
    good = Reference.of(chunk.payload)
    for change in ({"offset": 25}, {"rows": 31}, {"groups": (2, 5)}, {"groups": (7, 1)}):
        with pytest.raises(InvalidInput, match="does not have"):
            place.read(chunk._replace(payload=replace(good, **change).payload()))
    for change in ({"place": "/etc/passwd"}, {"place": f"{place.root}/../x"}, {"place": "a.parquet"}):
        with pytest.raises(InputNotAllowed):
            place.read(chunk._replace(payload=replace(good, **change).payload()))
    for payload in (b"", b"[]", b"{}", chunk.payload.replace(b'"rows":30', b'"rows":"30"')):
        with pytest.raises(InvalidInput, match="not a reference"):
            Reference.of(payload)
    elsewhere = ReferenceReader(InputRoots([f"{place.root}/other"]))
    with pytest.raises(InputNotAllowed):
        elsewhere.read(job(chunk), Model())  # type: ignore[arg-type]


def test_damaged_pages_of_an_unchanged_file(place: Place) -> None:
    path = write(place.root / "a.parquet", numbers(3000), 3000)
    data = bytearray(path.read_bytes())
    data[8:600] = os.urandom(592)
    path.write_bytes(data)
    (chunk,) = place.open(path).chunks(10_000, MIB)
    with pytest.raises(FileUnreadable, match="damaged"):
        place.read(chunk)


def test_urls_of_a_store(place: Place) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    local = write(place.root / "a.parquet", numbers(30), 10)
    for name in ("a", "b"):
        store.pipe_file(f"/lake/in/{name}.parquet", local.read_bytes())
    roots = InputRoots(["memory://lake/in"])
    opened = open_references("memory://lake/in", roots)
    reader = ReferenceReader(roots)
    chunks = list(opened.chunks(20, MIB))
    assert pa.concat_tables(reader.read(job(c), Model()) for c in chunks).num_rows == 60  # type: ignore[arg-type]
    with pytest.raises(InputNotAllowed):
        open_references("memory://lake/other/a.parquet", roots)
    store.pipe_file("/lake/in/b.parquet", local.read_bytes())
    reader.read(job(chunks[0]), Model())  # type: ignore[arg-type]
    with pytest.raises(InputChanged, match="was changed"):
        reader.read(job(chunks[-1]), Model())  # type: ignore[arg-type]
    store.rm("/lake/in/b.parquet")
    with pytest.raises(InputChanged, match="is gone"):
        reader.read(job(chunks[-1]), Model())  # type: ignore[arg-type]
    reader.close()


def test_without_fsspec_urls_are_not_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(NotConfigured, match="pip install"):
        open_references("s3://bucket/a.parquet", InputRoots(["s3://bucket"]))
