"""The HTTP API as a part of `pyfunq up`."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import SETOSA, split


@pytest.mark.parametrize("path", ["/api/task/async-apply/pyfunq.predict", "/api/worker/shutdown/any"])
def test_38_flower_takes_no_orders_from_strangers(up: Path, path: str) -> None:
    url = json.loads((up / "endpoints.json").read_text())["endpoints"]["flower_url"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(urllib.request.Request(url + path, b"{}"), timeout=30)


def test_it_is_there_and_scores(up: Path) -> None:
    url = json.loads((up / "endpoints.json").read_text())["endpoints"]["api_url"]

    def ask(path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **headers})
        with urllib.request.urlopen(request, timeout=90) as answer:
            return answer.status, json.loads(answer.read())

    assert ask("/health/ready") == (200, {"status": "ok"})
    body = {"model": "models:/iris/1", **json.loads(split(SETOSA))}
    status, job = ask("/v1/jobs", body, Prefer="wait=60")
    assert (status, job["predictions"]) == (200, ["setosa"])
