"""Where the Celery peers and the script keep their results: a Postgres connection, kept by each process."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg

TABLE = "CREATE TABLE IF NOT EXISTS prediction (number bigint PRIMARY KEY, prediction bigint NOT NULL)"
# For whoever writes each result once.
TABLE_WITHOUT_KEY = "CREATE TABLE IF NOT EXISTS prediction (number bigint NOT NULL, prediction bigint NOT NULL)"
# A message can be delivered twice.
_INSERT = "INSERT INTO prediction VALUES ($1, $2) ON CONFLICT DO NOTHING"
_INSERT_MANY = "INSERT INTO prediction SELECT * FROM unnest($1::bigint[], $2::bigint[]) ON CONFLICT DO NOTHING"


class Store:
    """Make it after the fork. Each call is committed when it returns."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection = self._loop.run_until_complete(asyncpg.connect(url))

    def insert(self, number: int, prediction: int) -> None:
        self._loop.run_until_complete(self._connection.execute(_INSERT, number, prediction))

    def insert_many(self, numbers: Sequence[int], predictions: Sequence[int]) -> None:
        self._loop.run_until_complete(self._connection.execute(_INSERT_MANY, numbers, predictions))

    def copy(self, records: Iterable[tuple[Any, ...]]) -> None:
        self._loop.run_until_complete(self._connection.copy_records_to_table("prediction", records=records))

    def close(self) -> None:
        self._loop.run_until_complete(self._connection.close())
        self._loop.close()
