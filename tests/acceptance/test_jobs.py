"""Single jobs by the CLI, good and bad."""

import base64
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from pyfunq.client import Client
from tests.acceptance.conftest import COLUMNS, SETOSA, VIRGINICA, Cli, environment_for, settings_of, split

IRIS = "models:/iris@champion"


def test_a_job_from_submit_to_result(cli: Cli) -> None:
    job = cli("submit", IRIS, split(SETOSA, VIRGINICA)).stdout.strip()
    assert cli("wait", job, "--timeout", "30").returncode == 0
    assert json.loads(cli("result", job).stdout) == ["setosa", "virginica"]
    status = cli.json("status", job)
    assert (status["status"], status["model_name"], status["model_version"]) == ("succeeded", "iris", "1")
    assert status["run_id"]
    assert "succeeded" in cli("status", job).stdout
    assert cli.json("result", job) == {"job": job, "model_version": "1", "predictions": ["setosa", "virginica"]}
    assert any(json.loads(line)["id"] == job for line in cli("list", "--json").stdout.splitlines())


@pytest.mark.parametrize(
    "inputs",
    [
        {"dataframe_split": {"columns": COLUMNS, "data": [SETOSA]}},
        {"dataframe_records": [dict(zip(COLUMNS, SETOSA, strict=True))]},
        {"instances": [dict(zip(COLUMNS, SETOSA, strict=True))]},
        {"inputs": {name: [value] for name, value in zip(COLUMNS, SETOSA, strict=True)}},
    ],
    ids=lambda inputs: next(iter(inputs)),
)
def test_each_of_mlflows_formats(cli: Cli, inputs: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(cli("submit", IRIS, "-", "--wait", stdin=json.dumps(inputs)).stdout) == ["setosa"]
    file = tmp_path / "input.json"
    file.write_text(json.dumps(inputs))
    assert json.loads(cli("submit", IRIS, file, "--wait").stdout) == ["setosa"]


@pytest.fixture(scope="module")
def count(up: Path) -> Iterator[Callable[[], int]]:
    """How many jobs the ledger has; of a model whose signature it knows."""
    with Client(settings_of(up)) as client:
        client.result(client.submit(IRIS, json.loads(split(SETOSA))))
        yield lambda: len(client.list(limit=1000))


def broken(**change: Any) -> str:
    return json.dumps({"dataframe_split": {"columns": COLUMNS, "data": [SETOSA], **change}})


@pytest.mark.parametrize(
    ("model", "inputs", "code", "says"),
    [
        ("iris", split(SETOSA), 2, "models:/"),
        ("models:/iris/99x", split(SETOSA), 2, "models:/iris/99x"),
        ("models:/../x", split(SETOSA), 2, "models:/"),
        ("models:/iris/1?x=1", split(SETOSA), 2, "?"),
        ("file:///etc/passwd", split(SETOSA), 2, "file:"),
        ("s3://bucket/model", split(SETOSA), 2, "s3:"),
        ("http://example.com/model", split(SETOSA), 2, "http:"),
        ("runs:/0123456789abcdef0123456789abcdef/model", split(SETOSA), 2, "PYFUNQ_ALLOWED_MODELS"),
        (IRIS, "{}", 2, "dataframe_split"),
        (IRIS, broken(data=[]), 2, "rows"),
        (IRIS, broken(data=[SETOSA, SETOSA[:3]]), 2, "row 2"),
        (IRIS, broken(columns=COLUMNS[:3], data=[SETOSA[:3]]), 2, "petal_width"),
        (IRIS, broken(columns=[*COLUMNS, "extra"], data=[[*SETOSA, 1.0]]), 2, "extra"),
        (IRIS, broken(data=[[5.1, 3.5, 1.4, "wide"]]), 2, "petal_width"),
        (IRIS, '{"dataframe_split": {"columns": ["a"], "data": [[NaN]]}}', 2, "NaN"),
        (IRIS, '{"instances": [[1]], "inputs": [[1]]}', 2, "inputs"),
        (IRIS, '{"dataframe_split": ', 2, "JSON"),
        (IRIS, "no-such-file.json", 2, "no-such-file.json"),
        (IRIS, split(*[SETOSA] * 600_000), 2, "10,485,760"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    cli: Cli, count: Callable[[], int], model: str, inputs: str, code: int, says: str
) -> None:
    before = count()
    stdin = inputs if len(inputs) > 100_000 else None
    done = cli("submit", model, "-" if stdin else inputs, code=code, stdin=stdin)
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert "wide" not in line.replace("petal_width", "")
    assert count() == before


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("models:/nope@champion", "no registered model named 'nope'"),
        ("models:/iris@nobody", "has no alias 'nobody'"),
        ("models:/iris/Staging", "no version in stage Staging"),
        ("models:/iris/99", "no version 99"),
    ],
)
def test_what_the_registry_lacks_fails_the_job(cli: Cli, model: str, says: str) -> None:
    done = cli("submit", model, split(SETOSA), "--wait", code=1)
    assert says in done.stderr
    assert done.stdout == ""


def test_jobs_that_do_not_exist(cli: Cli) -> None:
    for command in ("status", "wait", "result", "cancel"):
        unknown = "0199c0de-0000-7000-8000-000000000000"
        assert f"there is no job {unknown}" in cli(command, unknown, code=4).stderr
        assert "is not a job id" in cli(command, "nonsense", code=4).stderr


def test_waiting_gives_up_and_the_job_goes_on(cli: Cli) -> None:
    job = cli("submit", "models:/iris/1", split(SETOSA), "--lane", "bulk").stdout.strip()
    cli("wait", job)
    assert "was not finished after" not in cli("wait", job, "--timeout", "0.001").stderr, "it is final already"


def test_a_pickle_in_the_queue_is_never_opened(cli: Cli, up: Path, tmp_path: Path) -> None:
    """A message of any other kind is thrown away, and the worker goes on."""
    target = tmp_path / "opened"
    message = kombu_message(pickle.dumps(Opened(str(target))), "application/x-python-serialize")
    unknown = kombu_message(b"[[], {}, {}]", "application/json", task="os.system")
    redis_url = json.loads((up / "endpoints.json").read_text())["endpoints"]["redis_url"]
    with Redis.from_url(redis_url) as redis:
        for _ in range(3):
            redis.lpush("interactive", message, unknown)
    assert json.loads(cli("submit", IRIS, split(SETOSA), "--wait", "--timeout", "30").stdout) == ["setosa"]
    with Redis.from_url(redis_url) as redis:
        assert redis.llen("interactive") == 0
    assert not target.exists()


class Opened:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def kombu_message(body: bytes, content_type: str, task: str = "pyfunq.predict") -> str:
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "binary" if "python" in content_type else "utf-8",
            "content-type": content_type,
            "headers": {"lang": "py", "task": task, "id": str(uuid4()), "root_id": None, "parent_id": None},
            "properties": {
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "interactive"},
                "delivery_tag": str(uuid4()),
                "body_encoding": "base64",
            },
        }
    )


def test_an_expired_job_is_never_predicted(cli: Cli) -> None:
    job = cli("submit", IRIS, split(SETOSA), "--expires-in", "0.000001").stdout.strip()
    cli("wait", job, "--timeout", "30", code=1)
    assert cli.json("status", job)["status"] == "expired"
    assert "deadline" in cli("result", job, code=1).stderr


def test_a_final_job_stays_final_when_cancelled(cli: Cli) -> None:
    job = cli("submit", IRIS, split(SETOSA)).stdout.strip()
    cli("wait", job)
    assert cli.json("cancel", job)["status"] == "succeeded"


def test_the_library_finds_the_running_servers(up: Path) -> None:
    import pandas as pd

    with Client(settings_of(up)) as client:
        df = pd.DataFrame([SETOSA, VIRGINICA], columns=COLUMNS, index=["a", "b"])
        answer = client.predict(IRIS, df, timeout=30)
        jobs = client.submit_many(IRIS, [json.loads(split(SETOSA))] * 3)
        results = [client.result(job, 30) for job in jobs]
    assert answer.to_dict() == {"a": "setosa", "b": "virginica"}
    assert results == [["setosa"]] * 3


def test_importing_the_library_is_light() -> None:
    code = (
        "import sys, time; begun = time.process_time(); import pyfunq; seconds = time.process_time() - begun\n"
        "heavy = {'mlflow', 'pandas', 'fastapi', 'sklearn', 'celery', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 0.5, seconds"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_worker_by_plain_celery_joins_in(cli: Cli, up: Path, until: Callable[..., Any]) -> None:
    def processes() -> int:
        findings = [json.loads(line) for line in cli("doctor", "--json").stdout.splitlines()]
        return int(next(f for f in findings if f["check"] == "workers")["seen"].split()[0])

    before = processes()
    with (up / "logs" / "plain.log").open("w") as log:
        plain = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-Q", "interactive,bulk", "-c", "1"],
            env=environment_for(up),
            stdout=log,
            stderr=log,
        )
        try:
            until("its process beats", lambda: processes() == before + 1)
        finally:
            plain.terminate()
            plain.wait(30)
    until("it took leave", lambda: processes() == before)
    said = (up / "logs" / "plain.log").read_text().lower().splitlines()
    # Who runs it as root is warned; a message that comes while it takes leave is put back for the others.
    known = ("securitywarning", "requeuing undeliverable message")
    assert [line for line in said if "warning" in line and not any(k in line for k in known)] == []
