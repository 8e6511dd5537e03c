"""Arrow streams from outside: what they claim is measured before it is believed."""

import random

import pandas as pd
import pyarrow as pa
import pytest

from producer.api.arrow_bodies import read_table
from pyfunq.errors import InputTooLarge, InvalidInput, MalformedInput

MIB = 1024 * 1024


def stream(*tables: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, tables[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for table in tables:
            writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


RICH = pa.table(
    {
        "n": [1, None, 3],
        "t": ["a", "b", None],
        "l": [[1.0], [], None],
        "d": pa.array(["x", "y", "x"]).dictionary_encode(),
        "s": [{"k": 1}, {"k": 2}, None],
        "b": [True, False, None],
    }
)


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_what_was_sent_is_read(compression: str | None) -> None:
    assert read_table(stream(RICH, RICH, compression=compression), MIB).equals(pa.concat_tables([RICH, RICH]))


def test_a_few_bytes_that_would_be_many_are_refused() -> None:
    zeros = pa.table({"x": pa.array([0.0]).take(pa.array([0] * 4_000_000))})
    bomb = stream(zeros, compression="zstd")
    assert len(bomb) < MIB
    with pytest.raises(InputTooLarge):
        read_table(bomb, 16 * MIB)
    assert read_table(bomb, 33 * MIB).num_rows == 4_000_000


@pytest.mark.parametrize("column", [pa.nulls(100_000_000), pa.FixedSizeListArray.from_arrays(pa.nulls(2**27), 2**20)])
def test_rows_that_take_no_bytes_count_too(column: pa.Array) -> None:
    with pytest.raises(InputTooLarge):
        read_table(stream(pa.table({"x": column})), 10 * MIB)


@pytest.mark.parametrize("body", [b"", b"x", b"\xff" * 100, b"PAR1" + bytes(100), stream(RICH)[8:], stream(RICH)[:200]])
def test_what_is_no_arrow_stream(body: bytes) -> None:
    with pytest.raises(MalformedInput):
        read_table(body, MIB)


def test_no_damage_is_more_than_an_error() -> None:
    chance = random.Random(7)  # noqa: S311
    whole = [stream(RICH, compression=how) for how in (None, "zstd")]
    for _ in range(1500):
        body = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        try:
            table = read_table(bytes(body), MIB)
        except InvalidInput:
            continue
        assert table.num_rows <= MIB


def test_it_is_read_as_pandas_wrote_it() -> None:
    frame = pd.DataFrame({"when": pd.to_datetime(["2026-01-01"]), "x": [1.5]})
    table = read_table(stream(pa.Table.from_pandas(frame)), MIB)
    pd.testing.assert_frame_equal(table.to_pandas(), frame)
