"""What a caller may ask of a job's life: deadline, time limit, retries, idempotency key; checked."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pyfunq.errors import InvalidInput

_MOST_RETRIES = 20
_LONGEST_TIMEOUT_SECONDS = 7 * 86_400.0
_LONGEST_EXPIRY_SECONDS = 3650 * 86_400.0


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What a caller may ask of a job's life, checked."""

    expires_at: datetime | None
    timeout_seconds: float | None
    retries: int
    idempotency_key: str | None

    @classmethod
    def of(
        cls,
        expires_in: float | timedelta | None,
        timeout: float | timedelta | None,
        retries: int,
        idempotency_key: str | None = None,
    ) -> "JobLimits":
        """Raises InvalidInput."""
        if not isinstance(retries, int) or not 0 <= retries <= _MOST_RETRIES:
            raise InvalidInput(f"retries is a whole number from 0 to {_MOST_RETRIES}", field="retries")
        if idempotency_key is not None and not _is_key(idempotency_key):
            raise InvalidInput("an idempotency key has 1 to 255 printable characters", field="idempotency_key")
        seconds = _seconds("expires_in", expires_in, _LONGEST_EXPIRY_SECONDS)
        expires_at = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        return cls(expires_at, _seconds("timeout", timeout, _LONGEST_TIMEOUT_SECONDS), retries, idempotency_key)


def _is_key(key: object) -> bool:
    return isinstance(key, str) and 1 <= len(key) <= 255 and key.isprintable()


def _seconds(field: str, value: float | timedelta | None, longest: float) -> float | None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds is not None and not 0 < seconds <= longest:
        raise InvalidInput(f"{field} is a positive number of seconds, at most {longest:,.0f}", field=field)
    return seconds
