"""MLServer with adaptive batching: up to 256 requests, or those of 10 ms, are one call; a process a core.

Durability: none. A request lives in its connection, and its answer is stored nowhere. A request that lacks a column
can make it answer other requests of the same batch wrongly.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "model"
READY = f"/v2/models/{MODEL}/ready"
PREDICT = f"/v2/models/{MODEL}/infer"
BATCH_REQUESTS = 256
BATCH_SECONDS = 0.01


def command(venv: Path, files: Path, home: Path, ports: Sequence[int], processes: int) -> list[str]:
    server = {
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "parallel_workers": processes,
        "debug": False,
    }
    model = {
        "name": MODEL,
        "implementation": "mlserver_mlflow.MLflowRuntime",
        "parameters": {"uri": str(files)},
        "max_batch_size": BATCH_REQUESTS,
        "max_batch_time": BATCH_SECONDS,
    }
    (home / "settings.json").write_text(json.dumps(server))
    (home / "model-settings.json").write_text(json.dumps(model))
    return [str(venv / "bin" / "mlserver"), "start", str(home)]


def request(columns: list[str], row: list[float]) -> dict[str, Any]:
    cells = zip(columns, row, strict=True)
    inputs = [{"name": name, "shape": [1, 1], "datatype": "FP64", "data": [value]} for name, value in cells]
    return {"parameters": {"content_type": "pd"}, "inputs": inputs}


def prediction(answer: Any) -> int:
    return int(answer["outputs"][0]["data"][0])
