"""`mlflow models serve` with a process a core, on uvloop (without it an idle call takes 48 ms instead of 4).

Durability: none. A request lives in its connection, and its answer is stored nowhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

READY = "/ping"
PREDICT = "/invocations"


def command(venv: Path, files: Path, home: Path, ports: Sequence[int], processes: int) -> list[str]:
    served = ["models", "serve", "--model-uri", str(files), "--env-manager", "local"]
    where = ["--host", "127.0.0.1", "--port", str(ports[0]), "--workers", str(processes)]
    return [str(venv / "bin" / "python"), "-m", "mlflow", *served, *where]


def request(columns: list[str], row: list[float]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": [row]}}


def prediction(answer: Any) -> int:
    return int(answer["predictions"][0])
