"""The benchmarks' arithmetic and reports; measuring itself is not tested here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import arguments, command, write
from benchmarks.disturbance import Disturbance, Stolen
from benchmarks.failure import BenchmarkFailed
from benchmarks.figures import Workload, largest_deviation, percentile, read_figures, write_figures
from benchmarks.models import check
from benchmarks.report import AT_ONCE, BEFOREHAND, PLAIN_CELERY, cell, markdown, shown, spread, times_baseline
from benchmarks.stamped import Stamps
from benchmarks.step import medians, read_stamps, steps_of
from benchmarks.workloads import Sizes


def conditions(**more: Any) -> dict[str, Any]:
    machine = {"cpu": "a processor", "cores": 2, "ram_gib": 8.0, "system": "Linux 6"}
    known = {"date": "2026-01-02 03:04 UTC", "machine": machine, "versions": {"python": "3.13.1"}}
    return {**known, "postgres": {"fsync": "on"}, "scale": 1.0, "rounds": 3, "command": "python -m benchmarks", **more}


def workload(name: str, **more: Any) -> Workload:
    return Workload(name, conditions(**more))


def singles(**more: Any) -> Workload:
    made = workload("a", **more)
    for value in (40_000.0, 44_000.0, 50_000.0):
        made.add("PyFunQ", "lr", AT_ONCE, value)
    made.add(PLAIN_CELERY, "lr", AT_ONCE, 300.0)
    made.add(PLAIN_CELERY, "lr", BEFOREHAND, 440.0)
    return made


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, q) for q in (50, 99, 100, 1)] == [50, 99, 100, 1]
    assert percentile([7.0], 99) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_spread_is_the_largest_deviation_from_the_median() -> None:
    assert largest_deviation([90, 100, 130]) == pytest.approx(0.3)
    assert cell([90.0, 100.0, 130.0]) == "100 ±30%"
    assert cell([5.0]) == "5.0"
    assert [shown(v) for v in (1234567, 123.4, 12.34, 0.1234)] == ["1,234,567", "123", "12.3", "0.12"]


def test_the_ratio_is_to_the_better_figure_of_the_peer() -> None:
    made = singles()
    assert times_baseline(made, "PyFunQ", "lr") == pytest.approx(100)
    assert times_baseline(made, "MLServer", "lr") is None
    assert times_baseline(made, PLAIN_CELERY, "lr") == pytest.approx(1)
    assert times_baseline(workload("d"), "PyFunQ", "lr") is None


def test_the_table_has_every_product_with_machine_versions_and_date() -> None:
    made = singles()
    made.remark("by reference: this version cannot.")
    text = markdown({"a": made})
    assert "| PyFunQ | 44,000 ±14% | – | 100 |" in text
    assert "| plain Celery | 300 | 440 | 1.00 |" in text
    for part in ("a processor", "python 3.13.1", "2026-01-02", "fsync on", "this version cannot"):
        assert part in text
    assert "not a measurement" not in text
    assert "Scaled by 0.01: not a measurement" in markdown({"a": singles(scale=0.01)})


def test_one_product_with_many_metrics_has_a_row_for_each() -> None:
    made = workload("f")
    for product, redis in (("submit_many", 0.5), ("singles", 20.0)):
        made.add(product, "lr", "Redis, grown by MB", redis)
        made.add(product, "lr", "worked off, jobs/s", 10.0)
    text = markdown({"f": made})
    assert "| LogisticRegression | submit_many | singles |" in text
    assert "| Redis, grown by MB | 0.50 | 20.0 |" in text


def test_the_cost_of_depth_is_the_farthest_from_the_smallest() -> None:
    made = workload("g")
    for depth, rate in (("1,000", 100.0), ("10,000", 96.0), ("100,000", 110.0)):
        made.add("PyFunQ", "lr", f"{depth} queued, jobs/s", rate)
    assert spread(made) == pytest.approx(0.1)
    assert "Farthest from the first row: 10%" in markdown({"g": made})


def test_a_workload_is_replaced_whole_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    latency = workload("d")
    latency.add("PyFunQ", "lr", "p50 ms", 4.0)
    write_figures(path, {"a": singles(), "d": latency})
    again = workload("a", date="later")
    again.add("PyFunQ", "lr", AT_ONCE, 1.0)
    write_figures(path, {"a": again})
    read = read_figures(path)
    assert read["a"].values == again.values
    assert read["a"].conditions["date"] == "later"
    assert read["d"].values == latency.values


def test_table_figures_and_plot_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    latency = workload("d")
    latency.add("PyFunQ", "lr", "p50 ms", 4.0)
    deep = workload("g")
    deep.add("PyFunQ", "lr", "1,000 queued, jobs/s", 4.0)
    write({"a": singles(), "d": latency, "g": deep}, tmp_path / "results")
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["figures.json", "plot.png", "table.md"]
    assert (tmp_path / "results" / "plot.png").read_bytes().startswith(b"\x89PNG")


def taken(shares: list[float]) -> Callable[[], Any]:
    """In the place of the host: what it takes in one attempt after another."""
    left = iter(shares)

    class Watch:
        def share(self) -> float:
            return next(left)

    return Watch


@pytest.mark.parametrize(
    ("shares", "patience", "which", "says"),
    [
        (
            [0.02],
            60.0,
            1,
            "took 2% of the cores' time at most. Attempts that do not count, because it took more: 0 beside 1.",
        ),
        (
            [0.4, 0.01],
            0.0,
            2,
            "took 1% of the cores' time at most. Attempts that do not count, because it took more: 1",
        ),
        (
            [0.2, 0.1, 0.3],
            0.0,
            2,
            "took 10% of the cores' time at most. Attempts that do not count, because it took more: 2",
        ),
        (
            [0.2, 0.1, 0.3, 0.2, 0.0],
            60.0,
            5,
            "took 0% of the cores' time at most. Attempts that do not count, because it took more: 4",
        ),
    ],
)
async def test_what_was_disturbed_is_measured_again(
    shares: list[float], patience: float, which: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, settled = 0, 0

    async def settle() -> None:
        nonlocal settled
        settled += 1

    async def once() -> int:
        nonlocal attempts
        attempts += 1
        return attempts

    probes = iter([0.5, 0.0] + [0.0] * len(shares))
    monkeypatch.setattr("benchmarks.disturbance._PAUSE_SECONDS", 0.0)
    disturbance = Disturbance(settle, patience, probe=lambda: next(probes), watch=taken(shares))
    assert await disturbance.measure(once) == which
    assert attempts == settled == len(shares)
    assert says in str(disturbance)


async def test_patience_ends() -> None:
    async def done() -> str:
        return "done"

    disturbance = Disturbance(done, 0.0, probe=lambda: 1.0, watch=taken([0.0]))
    assert await disturbance.measure(done) == "done"


def test_what_the_host_takes_is_a_share_of_the_time_of_all_cores() -> None:
    stolen = Stolen()
    assert 0 <= stolen.share() <= 1


def test_wrong_and_missing_results_end_the_run() -> None:
    truth = np.array([1, 0, 1])
    check("fine", [1.0, 0.0, 1.0], truth)
    with pytest.raises(BenchmarkFailed, match="1 of 3 results are wrong"):
        check("wrong", [1, 1, 1], truth)
    with pytest.raises(BenchmarkFailed, match="2 of 3 results are there"):
        check("missing", [1, 0], truth)


def test_sizes_scale_and_never_vanish() -> None:
    assert Sizes(1).backlog_rows == Sizes(1).queued == 1_000_000
    assert Sizes(1).depths == [1_000, 10_000, 100_000, 1_000_000]
    assert Sizes(1).finished == 10_000_000
    assert Sizes(1).idle_calls >= 300
    small = Sizes(0.0001)
    assert small.backlog_rows > 0
    assert small.queued % 8 == 0
    assert small.depths == [1_000]


def test_options_say_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["--only", "a, c"]).only == ["a", "c"]
    assert "g" not in arguments([]).only
    with pytest.raises(SystemExit):
        arguments(["--only", "a,z"])
    assert "no workload is called z" in capsys.readouterr().err


def test_the_command_of_a_run_names_no_place_of_its_machine() -> None:
    words = ["--only", "a,b", "--venvs", "/home/me/venvs", "--results=/elsewhere", "--rounds", "1"]
    assert command(words) == "python -m benchmarks --only a,b --rounds 1"


WHOLE = [
    *("submit", "message", "claim", "claimed", "claim", "committed"),
    *("claimed", "predicted", "recorded", "announced", "ask", "answered"),
]


def stamps_of_steps(path: Path, *steps: dict[int, int]) -> None:
    """A step takes 12 ms, a stamp each; `steps` say of how many jobs those are that have any, by their places."""
    lines = [
        f"{(12 * step + place) / 1000:.6f} {name} {jobs.get(place, 0)}"
        for step, jobs in enumerate(steps)
        for place, name in enumerate(WHOLE)
    ]
    path.write_text("\n".join(reversed(lines)))


def test_a_step_is_measured_from_stamp_to_stamp(tmp_path: Path) -> None:
    together = {0: 64, 3: 0, 6: 64}
    stamps_of_steps(tmp_path / "stamps", together, together, {0: 64})
    found = medians(steps_of(read_stamps(tmp_path / "stamps"), 64))
    assert found["a step"] == pytest.approx(12)
    assert found["they are claimed"] == pytest.approx(2)  # by the claim that found them
    assert found["it asks for them; where they were not there yet, again"] == pytest.approx(3)
    assert found["the callers have them, and have submitted their next jobs"] == pytest.approx(1)


def test_only_steps_of_all_callers_count(tmp_path: Path) -> None:
    stamps_of_steps(tmp_path / "stamps", {0: 64, 6: 64}, {0: 60, 6: 64}, {0: 64, 3: 4, 6: 60}, {0: 64, 6: 64})
    steps = steps_of(read_stamps(tmp_path / "stamps"), 64)
    assert [step["submit"] for step in steps] == [0.0]  # nobody knows where the last one ends


async def test_stamps_say_when_a_method_began_and_ended_and_of_how_many(tmp_path: Path) -> None:
    class Ledger:
        async def submit(self, jobs: list[int]) -> dict[int, int]:
            return {}

    stamps = Stamps(str(tmp_path / "stamps"))
    stamps.coroutine(Ledger, "submit", "submit", "committed")
    assert await Ledger().submit([1, 2, 3]) == {}
    begun, ended = read_stamps(tmp_path / "stamps")
    assert (begun.name, begun.jobs, ended.name, ended.jobs) == ("submit", 3, "committed", 0)
    assert begun.seconds <= ended.seconds
