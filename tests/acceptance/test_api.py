"""The HTTP API as a part of `pyfunq up`."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import SETOSA, split

README = Path(__file__).parents[2] / "README.md"


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


def test_the_lines_of_the_readme_run(up: Path, tmp_path: Path) -> None:
    (lines,) = re.findall(r"run by tests/acceptance/test_api.py -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    url = json.loads((up / "endpoints.json").read_text())["endpoints"]["api_url"]
    script = f'set -euo pipefail\ncurl() {{ command curl --fail-with-body "$@"; echo; }}\n{lines}'
    assert "http://127.0.0.1:8080" in script
    script = script.replace("http://127.0.0.1:8080", url)
    ran = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert "status" in said[0]
    assert said[1]["predictions"] == ["setosa"]
    assert {one["prediction"] for one in said if "prediction" in one} == {"setosa", "virginica"}
    assert {"predictions": ["setosa", "virginica"]} in said
    (outputs,) = (one["outputs"] for one in said if "outputs" in one)
    assert outputs[0]["data"] == ["setosa", "virginica"]
    assert "iris" in {model["name"] for model in said[-1]["data"]}
