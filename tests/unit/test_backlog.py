"""Backlogs: real files are checked whole, then read in chunks that lose no row, order or type."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfunq import parquet_files, text_files
from pyfunq.backlog import check_file, open_backlog, read_chunks
from pyfunq.errors import FileUnreadable, InputTooLarge, InvalidInput, PyFunQError
from pyfunq.signature import Signature

SECRET = "s3cr3t"
MIB = 1 << 20


def sig(**types: str) -> Signature:
    """`name="type"`; `name="type?"` is optional."""
    specs = [{"name": n, "type": t.rstrip("?"), "required": not t.endswith("?")} for n, t in types.items()]
    return Signature.from_json(json.dumps(specs))


def written(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def parquet(path: Path, columns: dict, **options) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(source, chunk_rows=1000, max_bytes=MIB, signature=None) -> list[pa.Table]:
    chunks = list(read_chunks(source, chunk_rows=chunk_rows, max_bytes=max_bytes, signature=signature))
    tables = [pa.ipc.open_stream(chunk.payload).read_all() for chunk in chunks]
    assert [chunk.rows for chunk in chunks] == [table.num_rows for table in tables]
    assert all(chunk.format == "arrow" and chunk.size <= max_bytes for chunk in chunks)
    return tables


def whole(source, signature=None) -> pa.Table:
    return pa.concat_tables(read(source, 3, signature=signature))


def refused(kind: type[PyFunQError], path: Path, signature=None) -> str:
    with pytest.raises(kind) as caught:
        check_file(path, signature=signature)
    message = str(caught.value)
    assert str(path) in message
    assert SECRET not in message
    return message.replace(str(path), "F")


# Chunks.


@pytest.fixture(params=["p.parquet", "c.csv", "c.csv.gz", "j.jsonl", "j.ndjson.gz", "frame", "table", "frames"])
def seven_rows(request, tmp_path):
    frame = pd.DataFrame({"n": range(7), "x": [i / 2 for i in range(7)], "s": [f"t{i}" for i in range(7)]})
    path = tmp_path / request.param
    if ".parquet" in request.param:
        frame.to_parquet(path)
    elif ".csv" in request.param:
        written(path, frame.to_csv(index=False))
    elif "." in request.param:
        written(path, frame.to_json(orient="records", lines=True))
    else:
        frames = (frame.iloc[i : i + 2] for i in range(0, 7, 2))
        return {"frame": frame, "table": pa.Table.from_pandas(frame), "frames": frames}[request.param]
    return path


def test_every_source_gives_the_same_chunks(seven_rows):
    tables = read(seven_rows, chunk_rows=3)
    assert [table.num_rows for table in tables] == [3, 3, 1]
    table = pa.concat_tables(tables)
    assert table.to_pydict() == {
        "n": list(range(7)),
        "x": [i / 2 for i in range(7)],
        "s": [f"t{i}" for i in range(7)],
    }
    assert [table.schema.field(n).type for n in "nx"] == [pa.int64(), pa.float64()]


def test_every_source_is_cast_to_the_signature(seven_rows):
    for table in read(seven_rows, 2, signature=sig(n="double", x="float", s="string")):
        assert [table.schema.field(n).type for n in "nx"] == [pa.float64(), pa.float32()]


def test_rows_are_known_for_files_and_frames_and_read_again(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"x": list(range(10))})
    opened = open_backlog(path)
    assert opened.rows == check_file(path) == open_backlog(str(path)).rows == 10
    assert [chunk.rows for chunk in opened.chunks(4, MIB)] == [4, 4, 2]
    assert [chunk.rows for chunk in opened.chunks(10, MIB, {"t": 1})] == [10]
    assert next(opened.chunks(10, MIB, {"t": 1})).params == b'{"t":1}'
    assert open_backlog(iter([pd.DataFrame({"x": [1]})])).rows is None


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), max_size=6).filter(any),
    st.integers(1, 12),
    st.integers(420, 700),
)
def test_rechunking_keeps_rows_and_order(parts, chunk_rows, max_bytes):
    frames = [pa.table({"x": pa.array(part, pa.int64())}) for part in parts]
    tables = read(iter(frames), chunk_rows, max_bytes)
    flat = [x for part in parts for x in part]
    assert [x for table in tables for x in table["x"].to_pylist()] == flat
    assert all(table.num_rows <= chunk_rows for table in tables)
    unlimited = [t.num_rows for t in read(iter(frames), chunk_rows)]
    assert unlimited == [chunk_rows] * (len(flat) // chunk_rows) + [len(flat) % chunk_rows] * bool(
        len(flat) % chunk_rows
    )


def test_chunks_are_split_to_fit_and_a_row_that_cannot_fit_is_named(tmp_path):
    cells = [os.urandom(300).hex() for _ in range(8)]
    tables = read(parquet(tmp_path / "a.parquet", {"s": cells}), chunk_rows=8, max_bytes=2500)
    assert len(tables) > 1
    assert [s for table in tables for s in table["s"].to_pylist()] == cells
    big = parquet(tmp_path / "b.parquet", {"s": [*cells[:5], SECRET * 2000]})
    with pytest.raises(InputTooLarge, match=r"row 6 alone has [\d,]+ bytes; at most 2,500 are allowed"):
        read(big, chunk_rows=4, max_bytes=2500)


def test_a_file_that_changes_after_the_check_is_not_read(tmp_path):
    path = written(tmp_path / "a.csv", "x\n1\n2\n")
    opened = open_backlog(path)
    written(path, "x\n1\n2\n3\n")
    with pytest.raises(FileUnreadable, match="was changed after it was checked"):
        list(opened.chunks(10, MIB))


# Frames.


def test_frames_may_differ_in_order_and_width_of_numbers_but_not_in_columns():
    first, second = pd.DataFrame({"a": [1], "b": ["x"]}), pd.DataFrame({"b": ["y"], "a": [2.5]})
    (table,) = read([first, second.iloc[:0], second])
    assert table.to_pydict() == {"a": [1.0, 2.5], "b": ["x", "y"]}
    with pytest.raises(InvalidInput, match="frame 2 has other columns than frame 1"):
        read([first, first[["a"]]])
    with pytest.raises(InvalidInput, match="changes its type"):
        read([first[["a"]], pd.DataFrame({"a": ["text"]})])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([], "the input has no rows"),
        (pd.DataFrame({"x": []}), "the input has no rows"),
        ([{"x": 1}], "got dict"),
        ({"instances": [1]}, "a backlog is a path, a DataFrame, an Arrow table or an iterable of these, got dict"),
        (7, "got int"),
        (b"file.csv", "got bytes"),
    ],
)
def test_refuses_sources(source, expected):
    with pytest.raises(InvalidInput, match=expected):
        read(source)


def test_rows_of_an_iterable_are_checked_as_they_come():
    frames = [pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [None, 2.5]})]
    chunks = read_chunks(frames, chunk_rows=2, max_bytes=MIB, signature=sig(x="long"))
    assert next(chunks).rows == 2
    with pytest.raises(InvalidInput, match="cannot hold nulls"):
        next(chunks)


# What is no file to read.


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "a.csv.gz"])
def test_refuses_missing_empty_and_cut_off_files(tmp_path, name):
    path = tmp_path / name
    assert refused(FileUnreadable, path) == "F does not exist"
    path.mkdir()
    assert refused(FileUnreadable, path) == "F is a directory, not a file"
    path.rmdir()
    path.write_bytes(b"")
    assert refused(FileUnreadable, path) == "F is empty"


def test_refuses_unknown_extensions(tmp_path):
    for name in ("a.txt", "a", "a.parquet.gz", "a.gz"):
        assert "the name must end in .parquet" in refused(FileUnreadable, written(tmp_path / name, "x\n1\n"))


def test_reads_extensions_in_any_case(tmp_path):
    assert check_file(written(tmp_path / "A.CSV", "x\n1\n")) == 1


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv.gz", "x\n" + "12345\n" * 5000), ("a.jsonl.gz", '{"x":1}\n' * 5000)]
)
def test_refuses_cut_off_gzip(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode())[:-20])
    assert "ends in the middle" in refused(FileUnreadable, path)


# Parquet.


def test_refuses_damaged_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"x": list(range(5000))})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert refused(FileUnreadable, path) == "F cannot be read as parquet: it is damaged or ends in the middle"
    path.write_bytes(data[:4] + data[3000:])
    assert "ends in the middle" in refused(FileUnreadable, path)
    assert "no rows" in refused(FileUnreadable, parquet(tmp_path / "b.parquet", {"x": pa.array([], pa.int64())}))


def test_damage_within_parquet_pages_is_told_when_it_is_read(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"x": list(range(5000))}, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[1000:1010] = b"0123456789"
    path.write_bytes(data)
    with pytest.raises(FileUnreadable, match="damaged"):
        read(path)


def test_an_index_that_pandas_stored_is_dropped(tmp_path):
    pd.DataFrame({"x": [1, 2]}, index=pd.Index(["p", "q"], name="key")).to_parquet(tmp_path / "a.parquet")
    assert whole(tmp_path / "a.parquet", sig(x="long")).to_pydict() == {"x": [1, 2]}


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pa.array([1, None, 3]), "long", "column 'x' is integer (long) and cannot hold nulls"),
        (pa.array([1, None, 3]), "long?", "column 'x' is integer (long) and cannot hold nulls"),
        (pa.array([1.5]), "long", "column 'x' is integer (long), but got Arrow type double"),
        (pa.array([2**40]), "integer", "column 'x' is integer (32 bit), but a value is outside its range"),
        (pa.array([SECRET]), "double", "column 'x' is number (double), but got Arrow type string"),
    ],
)
def test_parquet_is_checked_against_the_signature(tmp_path, statistics, values, kind, expected):
    path = parquet(tmp_path / "a.parquet", {"x": values}, write_statistics=statistics)
    assert expected in refused(InvalidInput, path, sig(x=kind))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("nulls", [pa.nulls(2), pa.nulls(2, pa.int64()), pa.nulls(2, pa.float64())])
def test_an_optional_column_of_nulls_is_left_out(tmp_path, statistics, nulls):
    path = parquet(tmp_path / "a.parquet", {"k": [1.0, 2.0], "x": nulls}, write_statistics=statistics)
    assert whole(path, sig(k="double", x="long?")).column_names == ["k"]


def test_columns_of_a_file_are_checked(tmp_path):
    for path in (
        parquet(tmp_path / "a.parquet", {"a": [1], "z": [1]}),
        written(tmp_path / "a.csv", "a,z\n1,1\n"),
        written(tmp_path / "a.jsonl", '{"a":1,"z":1}\n'),
    ):
        message = refused(InvalidInput, path, sig(a="double", b="double"))
        assert message == "F: column 'b' is missing; column 'z' is not in the model's signature"


# CSV.


def test_csv_quoting_bom_crlf_and_line_breaks_in_quotes(tmp_path):
    text = '\ufeffa,"b,1"\r\n1,"x\ny"\r\n2,"say ""hi"""\r\n3,\r\n4,""\r\n'
    table = whole(written(tmp_path / "a.csv", text))
    assert table.to_pydict() == {"a": [1, 2, 3, 4], "b,1": ["x\ny", 'say "hi"', None, ""]}


def small_blocks(monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text_files, "BLOCK_ROWS", 4)
    monkeypatch.setattr(parquet_files, "BLOCK_ROWS", 4)


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1"] * 50 + ["2.5"], pa.float64(), [1.0] * 50 + [2.5]),
        (["1"] * 50 + ["2.5"] * 50 + ["x"], pa.string(), ["1"] * 50 + ["2.5"] * 50 + ["x"]),
        ([""] * 50 + ["7"], pa.int64(), [None] * 50 + [7]),
        (["1"] * 50 + ["NA", " 2 ", "+3"], pa.int64(), [1] * 50 + [None, 2, 3]),
        (["0.5", "nan", "1e3"], pa.float64(), [0.5, None, 1000.0]),
        (["true", "False"] * 20, pa.bool_(), [True, False] * 20),
        (["true"] * 50 + ["1.5"], pa.string(), ["true"] * 50 + ["1.5"]),
        (["NA", "x"], pa.string(), ["NA", "x"]),
        (["0x1F", "1"], pa.string(), ["0x1F", "1"]),
        (["12345678901234567890123"], pa.float64(), [12345678901234567890123.0]),
        (["", ""], pa.float64(), [None, None]),
    ],
)
def test_csv_columns_have_one_type_however_late_it_shows(tmp_path, monkeypatch, cells, kind, values):
    small_blocks(monkeypatch)
    path = written(tmp_path / "a.csv", "k,x\n" + "".join(f"k,{cell}\n" for cell in cells))
    for table in read(path, 3):
        assert table.schema.field("x").type == kind
    assert whole(path)["x"].to_pylist() == values


def test_the_signature_decides_the_types_of_csv(tmp_path):
    text = "d,n,s,b,t,y\n1,2.0,007,TRUE,2020-01-01,YQ==\n,3,NA,0,2020-01-01 10:00:00.5,\n"
    table = whole(
        written(tmp_path / "a.csv", text),
        sig(d="double", n="long", s="string", b="boolean", t="datetime", y="binary"),
    )
    assert table.drop_columns("t").to_pydict() == {
        "d": [1.0, None],
        "n": [2, 3],
        "s": ["007", "NA"],
        "b": [True, False],
        "y": [b"a", None],
    }
    assert table["t"].cast(pa.string()).to_pylist() == [
        "2020-01-01 00:00:00.000000000",
        "2020-01-01 10:00:00.500000000",
    ]


@pytest.mark.parametrize(
    ("kind", "cell", "expected"),
    [
        ("long", "1.5", "F: column 'x' is integer (long), but got a fraction (row 41)"),
        ("long", SECRET, "F: column 'x' is integer (long), but got text that is not one (row 41)"),
        ("long", "9" * 25, "F: column 'x' is integer (long), but got a value outside its range (row 41)"),
        ("integer", "4294967296", "F: column 'x' is integer (32 bit), but a value is outside its range"),
        ("long", "", "F: column 'x' is integer (long) and cannot hold nulls"),
        ("long", "NA", "F: column 'x' is integer (long) and cannot hold nulls"),
        ("long?", "", "F: column 'x' is integer (long) and cannot hold nulls"),
        ("double", SECRET, "F: column 'x' is number (double), but got text that is not one (row 41)"),
        ("boolean", "2", "F: column 'x' is boolean, but got text that is not one (row 41)"),
        ("array", "[]", "F: column 'x' is array, which CSV cannot hold"),
    ],
)
def test_csv_is_checked_against_the_signature(tmp_path, monkeypatch, kind, cell, expected):
    small_blocks(monkeypatch)
    path = written(tmp_path / "a.csv", "k,x\n" + "1,1\n" * 40 + f"2,{cell}\n" + "1,1\n" * 40)
    assert refused(InvalidInput, path, sig(k="long", x=kind)) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n\n3\n4,5\n", "F is ragged: line 4 has 1 values where the header has 2"),
        ('a,b\n"x\ny",2\n3,4,5\n', "F is ragged: line 4 has 3 values where the header has 2"),
        (f'a,b\n1,2\n3,"{SECRET}\n', "F ends in the middle: the quote that line 3 opens is never closed"),
        ("a,b\n1,2\n3", "F is ragged: line 3 has 1 values where the header has 2"),
        ("a,b\n", "F has no rows"),
        ("\n\n", "F has no header"),
        (b"a,b\n1,\xff\n", "F is not UTF-8"),
    ],
)
def test_refuses_damaged_csv(tmp_path, content, expected):
    assert refused(FileUnreadable, written(tmp_path / "a.csv", content)) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a,a", "F: the header: column 'a' is given more than once"),
        ("a,", "F: the header has a column without a name"),
    ],
)
def test_refuses_headers(tmp_path, header, expected):
    assert refused(InvalidInput, written(tmp_path / "a.csv", f"{header}\n1,2\n")) == expected


def test_a_lone_quote_within_a_field_is_text(tmp_path):
    assert whole(written(tmp_path / "a.csv", 'a,b\n5" pipe,1\n')).to_pydict() == {"a": ['5" pipe'], "b": [1]}


text_cells = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(text_cells, text_cells), min_size=1, max_size=8))
def test_what_the_csv_module_writes_is_read_back(tmp_path, rows):
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    table = whole(written(tmp_path / "a.csv", buffer.getvalue()), sig(a="string", b="string"))
    assert list(zip(*table.to_pydict().values(), strict=True)) == rows


# JSON Lines.


def test_jsonl_bom_crlf_blank_lines_and_key_order(tmp_path):
    text = '\ufeff{"a":1,"b":"x: y"}\r\n\r\n{"b":null,"a":2}'
    assert whole(written(tmp_path / "a.jsonl", text)).to_pydict() == {"a": [1, 2], "b": ["x: y", None]}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1] * 9 + [2.5], pa.float64()),
        ([None] * 9 + [True], pa.bool_()),
        ([2**63], pa.float64()),
        ([[1]] * 9 + [[2.5], None], pa.list_(pa.float64())),
        ([{"p": 1}, {"p": 2, "q": "x"}], pa.struct([("p", pa.int64()), ("q", pa.string())])),
        ([None], pa.null()),
        (["2020-01-01T00:00:00"], pa.string()),
    ],
)
def test_jsonl_columns_have_one_type_however_late_it_shows(tmp_path, monkeypatch, cells, kind):
    small_blocks(monkeypatch)
    path = written(tmp_path / "a.jsonl", "".join(json.dumps({"k": 1, "x": cell}) + "\n" for cell in cells))
    for table in read(path, 3):
        assert table.schema.field("x").type == kind
    assert len(whole(path)) == len(cells)


def test_the_signature_decides_the_types_of_jsonl(tmp_path):
    line = {"d": 1, "n": 2.0, "t": "2020-01-01", "y": "YQ==", "o": None, "l": [1]}
    signature = sig(d="double", n="long", t="datetime", y="binary", o="long?", l="array")
    table = whole(written(tmp_path / "a.jsonl", json.dumps(line) + "\n"), signature)
    assert table.drop_columns("t").to_pydict() == {"d": [1.0], "n": [2], "y": [b"a"], "l": [[1]]}
    assert table["t"].type == pa.timestamp("ns")


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1.5, "long", "F: column 'x' is integer (long), but got a fraction (row 11)"),
        (SECRET, "double", "F: column 'x' is number (double), but got a string (row 11)"),
        (None, "long", "F: column 'x' is integer (long) and cannot hold nulls (row 11)"),
        (None, "long?", "F: column 'x' is integer (long) and cannot hold nulls (row 11)"),
    ],
)
def test_jsonl_is_checked_against_the_signature(tmp_path, monkeypatch, value, kind, expected):
    small_blocks(monkeypatch)
    lines = [{"x": 1}] * 10 + [{"x": value}, {"x": 1}]
    path = written(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert refused(InvalidInput, path, sig(x=kind)) == expected


def test_an_optional_integer_of_jsonl_is_null_everywhere_or_nowhere(tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    path = written(tmp_path / "a.jsonl", '{"k":1,"x":null}\n' * 8 + '{"k":1,"x":1}\n' * 8)
    assert "cannot hold nulls" in refused(InvalidInput, path, sig(k="long", x="long?"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a":1}\n{"a":', "F ends in the middle of line 2, or that line is not JSON"),
        ('{"a":1}\n{"a":}\n{"a":1}\n', "F: line 2 is not valid JSON"),
        ('{"a":1}\n{"a":NaN}\n', "F: line 2 is not valid JSON"),
        ('{"a":1}\n[1]\n', "F: line 2 is not a JSON object"),
        ('{"a":1}\n{"b":1}\n', "F: line 2 has other keys than the first line"),
        ('{"a":1,"a":2}\n', "F: line 1: the key 'a' is given more than once in one object"),
        ("\n\n", "F has no rows"),
        (b'{"a":"\xff"}\n', "F: line 1 is not valid JSON"),
    ],
)
def test_refuses_damaged_jsonl(tmp_path, content, expected):
    assert refused(FileUnreadable, written(tmp_path / "a.jsonl", content)) == expected


def test_refuses_jsonl_columns_of_mixed_types(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"a":1}\n{"a":"x"}\n')
    assert refused(InvalidInput, path) == "F: column 'a' mixes values of types int and str"
