"""Ids that sort by the time they were made: UUIDv7."""

from datetime import UTC, datetime
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as CompactUUID
from uuid_utils import uuid7

__all__ = ["id_time", "ids_of", "new_id", "oldest_id_at"]


def new_id() -> UUID:
    # As those that come from the ledger: hashed, compared and sent in C, where uuid.UUID takes some microseconds a job.
    return CompactUUID(uuid7().bytes)  # type: ignore[no-any-return]


def ids_of(data: bytes) -> list[UUID]:
    """Of the bytes of ids, one after another; what is left over at the end is no id."""
    return [CompactUUID(data[i : i + 16]) for i in range(0, len(data) - 15, 16)]


def id_time(value: UUID) -> datetime:
    """When an id was made, to the millisecond."""
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)


def oldest_id_at(seconds_since_epoch: float) -> UUID:
    """The smallest id that can have been made at this time."""
    return UUID(int=max(0, int(seconds_since_epoch * 1000)) << 80)
