"""How a batch was cut from which file: what must be the same when submitting it goes on."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pyfunq.errors import InvalidInput

Source = dict[str, int | str]
"""Size, modification time and checksum of a file, or what stands for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """See the module. `params` is canonical JSON."""

    by_reference: bool
    chunk_rows: int
    max_bytes: int
    rows: int
    queue: str
    params: str | None
    timeout_seconds: float | None
    retries: int
    source: Source

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, text: str) -> "Cut":
        return cls(**json.loads(text))

    def check_source(self, found: Source, name: str) -> None:
        """Raises InvalidInput where the file is not the one that the batch was cut from."""
        words = {"size": "size", "mtime_ns": "modification time", "checksum": "content"}
        other = [words.get(key, key) for key, value in self.source.items() if found.get(key) != value]
        if other:
            raise InvalidInput(
                f"{name} is not the file that the batch is from: other {' and '.join(other)}", field="source"
            )

    def params_object(self) -> dict[str, Any] | None:
        params: dict[str, Any] | None = json.loads(self.params) if self.params else None
        return params
