"""Ids are UUIDs of version 7 to everybody, grow with time, and are as quick as those that come from the ledger."""

import pickle
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as CompactUUID

from pyfunq.ids import id_time, ids_of, new_id, oldest_id_at


def test_an_id_is_a_uuid_like_any_other() -> None:
    made = new_id()
    same = UUID(str(made))
    assert isinstance(made, UUID)
    assert made.version == 7
    assert made == same
    assert same == made
    assert hash(made) == hash(same)
    assert {made: 1}[same] == 1
    assert (str(made), repr(made), made.hex, made.int) == (str(same), repr(same), same.hex, same.int)
    assert pickle.loads(pickle.dumps(made)) == same


def test_it_is_of_the_ledgers_kind_which_hashes_without_python() -> None:
    assert type(new_id()) is CompactUUID
    assert {type(one) for one in ids_of(new_id().bytes)} == {CompactUUID}


def test_ids_grow_and_have_their_time() -> None:
    before = datetime.now(UTC)
    made = [new_id() for _ in range(1_000)]
    assert made == sorted(made)
    assert len(set(made)) == 1_000
    assert before - timedelta(milliseconds=1) <= id_time(made[0]) <= datetime.now(UTC)
    assert oldest_id_at(-5).int == 0
    assert oldest_id_at(time.time() - 1) < made[0] < oldest_id_at(time.time() + 1)


def test_ids_are_read_one_after_another() -> None:
    made = [new_id() for _ in range(3)]
    assert ids_of(b"".join(one.bytes for one in made)) == made
    assert ids_of(made[0].bytes + b"a part") == made[:1]
    assert ids_of(b"") == []
