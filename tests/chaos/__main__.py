"""`python -m tests.chaos --minutes 1 --seed 7`: attacks a PyFunQ of its own and counts what was lost."""

import argparse
import asyncio
import random
import signal
import sys
import time

from tests.chaos.cluster import PROCESSES, PRODUCERS, QUICK, WORKERS, Cluster
from tests.chaos.faults import Attack
from tests.chaos.host import TakenByHost
from tests.chaos.load import JOBS_PER_SECOND
from tests.chaos.verdict import RESCUE_LIMIT_SECONDS, SHOWN, Verdict, count_fenced, judge, quantiles

SETTLE_SECONDS = 180.0
_LATE_WRITES_SECONDS = 2.0


def main() -> int:
    arguments = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored where a shell started this in the background
        signal.signal(number, signal.default_int_handler)
    begun = time.monotonic()
    with TakenByHost() as host, Cluster(arguments.seed) as cluster:
        cluster.keep = arguments.keep
        attack = Attack(cluster, random.Random(arguments.seed))  # noqa: S311
        print(f"seed {arguments.seed}; state in {cluster.home}; up after {time.monotonic() - begun:.1f} s", flush=True)
        try:
            attack.run(arguments.minutes * 60, lambda line: print(line, flush=True))
            attack.finish()
            cluster.stop_producers()
            settled = cluster.settle(SETTLE_SECONDS)
            time.sleep(_LATE_WRITES_SECONDS)
            attack.ended_by_themselves.extend(component.name for component in cluster.take_ended())
        finally:
            attack.give_up()
        away = [*attack.outages, *host.spans]
        judging = judge(
            cluster.settings.database, cluster.records, attack.blows, away, late_seconds=arguments.rescue_seconds
        )
        verdict = asyncio.run(judging)
        verdict.fenced = count_fenced(cluster.state.logs)
        for name in attack.ended_by_themselves:
            verdict.against("ended by itself", None, name)
        for what in attack.broken:
            verdict.against("harness", None, what)
        _report(arguments, attack, verdict, settled, host.seconds)
        cluster.keep = arguments.keep or (not verdict.clean and arguments.keep_failed)
    return 0 if verdict.clean else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults; starting and settling come on top")
    parser.add_argument("--seed", type=int, default=None, help="chooses the faults (default: a new one)")
    parser.add_argument(
        "--rescue-seconds",
        type=float,
        default=RESCUE_LIMIT_SECONDS,
        help="what is taken again later than this was rescued late (default: %(default)g; a busy machine needs more)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the state directory with the logs")
    parser.add_argument("--keep-failed", action="store_true", help="leave it when something was wrong")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10_000)
    return arguments


def _report(
    arguments: argparse.Namespace, attack: Attack, verdict: Verdict, settled: float | None, taken: float
) -> None:
    _title("run")
    _line("seed", arguments.seed)
    _line("fault minutes", f"{arguments.minutes:g}")
    _line("seconds after which a rescue is late", f"{arguments.rescue_seconds:g}")
    _line("workers × processes, producers", f"{WORKERS} × {PROCESSES}, {PRODUCERS}")
    _line("jobs a second, aimed at", f"{PRODUCERS * JOBS_PER_SECOND:.0f}")
    for name, value in QUICK.items():
        _line(name, value)
    _line("seconds that the host took of the cores", f"{taken:.0f}")
    _title(f"faults: {sum(attack.counts.values())}")
    for name, n in attack.counts.most_common():
        _line(name, n)
    _title(f"jobs in the ledger: {sum(verdict.statuses.values())}")
    for name, n in verdict.statuses.most_common():
        _line(name, n)
    for name, n in verdict.told.most_common():
        committed = f", {verdict.committed[name]} of them committed" if name in ("in doubt", "cut off") else ""
        _line(f"submitted: {name}", f"{n}{committed}")
    _line("results that came too late and were refused", verdict.fenced)
    _line("attempts, the most", max(verdict.attempts, default=0))
    for cause, n in verdict.causes.most_common():
        _line(f"submits that raised {cause}", n)
    _title("seconds: p50, p99, max")
    for kind, seconds in verdict.rescues.items():
        _line(f"{kind} to next claim or end ({len(seconds)} jobs)", _three(seconds))
    _line("accepted to final", _three(verdict.totals))
    _line("to settle at the end", "did not" if settled is None else f"{settled:.1f}")
    _title("violations")
    kinds = ("lost", "doubled", "unexpected", "torn", "wrong", "illegal", "late", "raised")
    for kind in (*kinds, "ended by itself", "harness"):
        _line(kind, len(verdict.violations.get(kind, ())))
    _show(verdict)


def _show(verdict: Verdict) -> None:
    for kind, found in verdict.violations.items():
        for job_id, what in found[:SHOWN]:
            print(f"{kind}: {job_id or ''} {what}")
            for step in verdict.histories.get(job_id, []) if job_id else []:
                print(f"    {step}")
    sys.stdout.flush()


def _three(seconds: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in quantiles(seconds))


def _title(text: str) -> None:
    print(f"\n{text}")


def _line(name: str, value: object) -> None:
    print(f"  {name:<58} {value}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
