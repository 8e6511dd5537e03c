"""Backlogs by the CLI: files in, files out, nothing half-submitted."""

import json
from pathlib import Path

import pandas as pd
import pytest

from producer.demo_models import diabetes
from pyfunq.client import Client
from tests.acceptance.conftest import Cli, settings_of, start

MODEL = "models:/diabetes/Production"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    x, _ = diabetes()
    return pd.concat([x] * 3, ignore_index=True)


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_file_comes_back_in_its_order(cli: Cli, frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    file = write(frame, tmp_path / f"in{suffix}")
    out = tmp_path / f"out{suffix}"
    batch = cli("batch", "submit", MODEL, file, "--chunk-rows", "100").stdout.strip()
    done = cli.json("batch", "wait", batch, "--timeout", "60")
    assert (done["jobs"], done["rows"], done["counts"]) == (14, 1326, {"succeeded": 14})
    cli("batch", "results", batch, "-o", out)
    read = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": lambda p: pd.read_json(p, lines=True)}[suffix]
    answers = read(out)["prediction"]
    lines = [json.loads(line)["prediction"] for line in cli("batch", "results", batch).stdout.splitlines()]
    assert answers.tolist() == pytest.approx(lines)
    first = json.loads(
        cli("submit", MODEL, frame.head(2).to_json(orient="split").join(['{"dataframe_split":', "}"]), "--wait").stdout
    )
    assert answers.head(2).tolist() == pytest.approx(first)
    assert answers[:442].tolist() == pytest.approx(answers[442:884].tolist()), "the same rows again"
    assert answers.nunique() > 400


def test_submit_and_wait_in_one(cli: Cli, frame: pd.DataFrame, tmp_path: Path) -> None:
    file = write(frame, tmp_path / "in.parquet")
    done = cli("batch", "submit", MODEL, file, "-o", tmp_path / "out.parquet")
    assert "1,326 rows in" in done.stderr
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 1326


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3 - 5])
    return path


def test_bad_files_are_refused_before_anything_is_submitted(cli: Cli, frame: pd.DataFrame, tmp_path: Path) -> None:
    cli("batch", "submit", MODEL, write(frame, tmp_path / "good.parquet"), "--wait")
    before = cli("list", "--json", "--limit", "1000").stdout
    cut_row = write(frame, tmp_path / "cut.csv")
    cut_row.write_text(cut_row.read_text().rstrip("\n").rsplit(",", 3)[0] + "\n")
    cases = {
        tmp_path / "missing.parquet": "missing.parquet",
        truncated(write(frame, tmp_path / "cut.parquet")): "cut.parquet",
        cut_row: "cut.csv",
        truncated(write(frame, tmp_path / "cut.jsonl")): "cut.jsonl",
        write(frame.drop(columns="bmi"), tmp_path / "column.parquet"): "bmi",
        write(frame.assign(bmi="x"), tmp_path / "type.csv"): "bmi",
        write(frame.head(0), tmp_path / "empty.csv"): "empty.csv",
        tmp_path: "directory",
    }
    for file, says in cases.items():
        done = cli("batch", "submit", MODEL, file, code=2)
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ")
        assert says in line, (file, line)
    assert cli("list", "--json", "--limit", "1000").stdout == before


def test_rows_of_a_failed_job_are_nulls_in_their_place(cli: Cli, up: Path, tmp_path: Path) -> None:
    x, _ = diabetes()
    wrong = x.assign(bmi=float("nan"))  # which the signature allows and Ridge does not
    with Client(settings_of(up)) as client:
        frames = [wrong.head(10), x.head(10), wrong.head(5)]
        batch = client.submit_batch("models:/diabetes/1", frames, chunk_rows=10)
        done = client.wait_batch(batch, 30)
    assert {str(status): n for status, n in done.counts.items()} == {"failed": 2, "succeeded": 1}
    said = cli("batch", "results", batch.id, "-o", tmp_path / "out.parquet").stderr
    assert said.count("warning: job") == 2
    assert "ValueError" in said
    answers = pd.read_parquet(tmp_path / "out.parquet")["prediction"]
    assert answers.isna().tolist() == [True] * 10 + [False] * 10 + [True] * 5


def test_a_folder_by_reference_where_the_operator_allows_it(
    cli: Cli, up: Path, frame: pd.DataFrame, tmp_path: Path
) -> None:
    folder = up / "in" / "backlog"
    folder.mkdir()
    for name, part in {"1": frame[:500], "2": frame[500:]}.items():
        part.to_parquet(folder / f"{name}.parquet", row_group_size=150)
    out = tmp_path / "out.parquet"
    said = cli("batch", "submit", MODEL, folder, "--by-reference", code=2).stderr
    assert "PYFUNQ_INPUT_ROOTS is empty" in said
    roots = {"PYFUNQ_INPUT_ROOTS": str(up / "in")}
    for other in (tmp_path / "x.parquet", f"{folder}/../../endpoints.json", f"file://{folder}/1.parquet"):
        assert "PYFUNQ_INPUT_ROOTS" in cli("batch", "submit", MODEL, other, "--by-reference", code=2, **roots).stderr
    cli("batch", "submit", MODEL, folder, "--by-reference", "--chunk-rows", "100", "-o", out, **roots)
    cli("batch", "submit", MODEL, write(frame, tmp_path / "in.parquet"), "-o", tmp_path / "value.parquet")
    assert pd.read_parquet(out).equals(pd.read_parquet(tmp_path / "value.parquet"))


def test_ctrl_c_says_how_to_go_on_and_resume_submits_the_rest(
    cli: Cli, up: Path, frame: pd.DataFrame, tmp_path: Path
) -> None:
    file = write(pd.concat([frame] * 20, ignore_index=True), tmp_path / "in.csv")
    # A lane that is full after three jobs holds the producer up until it is interrupted.
    stopped = start(
        up, "batch", "submit", "models:/nobody/1", str(file), "--chunk-rows", "50", PYFUNQ_MAX_QUEUED_JOBS="3"
    )
    try:
        stopped.wait_for("submitted:")
        assert stopped.stop() == 130
    finally:
        stopped.process.kill()
    line = stopped.wait_for("pyfunq batch resume")
    assert "rows were accepted and go on" in line
    batch, name = line.split("pyfunq batch resume ")[1].split()
    assert name == str(file)
    shown = cli("batch", "status", batch).stdout
    assert f"of {20 * len(frame):,} rows; resume with `pyfunq batch resume {batch} in.csv`" in shown
    assert cli.json("batch", "status", batch)["is_resumable"] is True
    done = cli.json("batch", "resume", batch, file)
    assert done["rows"] == 20 * len(frame)
    assert "resume" not in cli("batch", "status", batch).stdout
    other = write(frame, tmp_path / "other.csv")
    cli("batch", "resume", batch, other)  # nothing is missing: nothing is read
    cli("batch", "cancel", batch)


def test_batches_that_do_not_exist(cli: Cli) -> None:
    for command in ("status", "wait", "results", "cancel"):
        assert "there is no batch" in cli("batch", command, "0199c0de-0000-7000-8000-000000000000", code=4).stderr
