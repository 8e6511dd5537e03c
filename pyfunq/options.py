"""What a caller may ask of a job beside its prediction: deadline, time limit, retries, idempotency key; checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyfunq.errors import InvalidInput
from pyfunq.inputs import encode_params

_MOST_RETRIES = 20
_LONGEST_TIMEOUT_SECONDS = 7 * 86_400.0
_LONGEST_EXPIRY_SECONDS = 3650 * 86_400.0
_MOST_METADATA_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a caller may ask of a job beside its prediction, checked, and whose job it is."""

    expires_at: datetime | None
    timeout_seconds: float | None
    retries: int
    idempotency_key: str | None
    metadata: str | None = None
    tenant_id: int = 0
    tenant: str | None = None
    webhook: str | None = None
    """The URL that is told of its end; whoever sets it has checked it (`webhook_urls`)."""

    @classmethod
    def of(
        cls,
        expires_in: float | timedelta | None,
        timeout: float | timedelta | None,
        retries: int,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "JobOptions":
        """Raises InvalidInput."""
        asks_nothing = expires_in is None and timeout is None and idempotency_key is None and metadata is None
        if asks_nothing and type(retries) is int and retries == 0:
            return _NONE
        if not isinstance(retries, int) or not 0 <= retries <= _MOST_RETRIES:
            raise InvalidInput(f"retries is a whole number from 0 to {_MOST_RETRIES}", field="retries")
        if idempotency_key is not None and not _is_key(idempotency_key):
            raise InvalidInput("an idempotency key has 1 to 255 printable characters", field="idempotency_key")
        seconds = _seconds("expires_in", expires_in, _LONGEST_EXPIRY_SECONDS)
        expires_at = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        timeout_seconds = _seconds("timeout", timeout, _LONGEST_TIMEOUT_SECONDS)
        return cls(expires_at, timeout_seconds, retries, idempotency_key, _encoded_metadata(metadata))


_NONE = JobOptions(None, None, 0, None)


def _encoded_metadata(metadata: Mapping[str, Any] | None) -> str | None:
    if metadata is None:
        return None
    encoded = encode_params(metadata, name="metadata") or b"{}"
    if len(encoded) > _MOST_METADATA_BYTES:
        raise InvalidInput(f"metadata has {len(encoded):,} bytes, at most {_MOST_METADATA_BYTES:,}", field="metadata")
    return encoded.decode()


def _is_key(key: object) -> bool:
    return isinstance(key, str) and 1 <= len(key) <= 255 and key.isprintable()


def _seconds(field: str, value: float | timedelta | None, longest: float) -> float | None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds is not None and not 0 < seconds <= longest:
        raise InvalidInput(f"{field} is a positive number of seconds, at most {longest:,.0f}", field=field)
    return seconds
