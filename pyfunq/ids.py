"""Ids that sort by the time they were made: UUIDv7."""

from datetime import UTC, datetime
from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = ["id_time", "new_id", "oldest_id_at"]


def new_id() -> UUID:
    return uuid7()


def id_time(value: UUID) -> datetime:
    """When an id was made, to the millisecond."""
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)


def oldest_id_at(seconds_since_epoch: float) -> UUID:
    """The smallest id that can have been made at this time."""
    return UUID(int=max(0, int(seconds_since_epoch * 1000)) << 80)
