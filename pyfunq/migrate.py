"""Brings a database's tables up to this program's version, from any number of hosts at once."""

import hashlib
import re
from dataclasses import dataclass

import asyncpg

from pyfunq.errors import MigrationNeeded, PyFunQError
from pyfunq.ledger import ledger_errors
from pyfunq.sql import migrations

# Any constant will do, as long as every version of this program uses the same.
_LOCK = 0x7079_6675_6E71
_LOCK_TIMEOUT = "5s"
_OUTSIDE_TRANSACTION = re.compile(r"^-- no transaction$", re.MULTILINE)


class MigrationChanged(PyFunQError):
    """A migration that was applied differs from the one that this program brings."""

    code = "migration_changed"


@dataclass(frozen=True, slots=True)
class MigrationState:
    """File names of the migrations, in order."""

    applied: tuple[str, ...]
    pending: tuple[str, ...]


async def migration_state(database_url: str) -> MigrationState:
    """What is applied and what is pending; changes nothing."""
    with ledger_errors():
        connection = await asyncpg.connect(database_url, timeout=10)
        try:
            applied = await _applied(connection)
        finally:
            await connection.close()
    names = [name for name, _ in migrations()]
    return MigrationState(tuple(n for n in names if n in applied), tuple(n for n in names if n not in applied))


async def migrate(database_url: str) -> tuple[str, ...]:
    """Applies what is pending and returns its file names.

    A session lock lets one host at a time migrate; the others wait for it and find nothing left to do. Each file is
    one transaction, unless it says `-- no transaction`.
    """
    with ledger_errors():
        connection = await asyncpg.connect(database_url, timeout=10)
        try:
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
            return await _apply_pending(connection)
        finally:
            await connection.close()


async def require_current(database_url: str) -> None:
    """Raises MigrationNeeded unless every migration of this program is applied."""
    pending = (await migration_state(database_url)).pending
    if pending:
        raise MigrationNeeded(f"the database lacks {', '.join(pending)}; run `pyfunq migrate`")


async def _apply_pending(connection: asyncpg.Connection) -> tuple[str, ...]:
    applied = await _applied(connection)
    done = []
    for name, text in migrations():
        checksum = hashlib.sha256(text.encode()).hexdigest()
        if name in applied:
            if applied[name] != checksum:
                raise MigrationChanged(f"{name} was applied to this database with another content")
            continue
        if _OUTSIDE_TRANSACTION.search(text):
            await connection.execute(text)
            await _note(connection, name, checksum)
        else:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                await connection.execute(text)
                await _note(connection, name, checksum)
        done.append(name)
    return tuple(done)


async def _applied(connection: asyncpg.Connection) -> dict[str, str]:
    if not await connection.fetchval("SELECT to_regclass('pyfunq_migration') IS NOT NULL"):
        return {}
    return {r["name"]: r["checksum"] for r in await connection.fetch("SELECT name, checksum FROM pyfunq_migration")}


async def _note(connection: asyncpg.Connection, name: str, checksum: str) -> None:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS pyfunq_migration"
        " (name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    await connection.execute("INSERT INTO pyfunq_migration (name, checksum) VALUES ($1, $2)", name, checksum)
