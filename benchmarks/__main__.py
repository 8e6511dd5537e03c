"""PyFunQ beside its peers: starts servers, trains models, runs the workloads, writes table, figures and plot.

`python -m benchmarks` on an otherwise idle machine, from the repository's root. See benchmarks/README.md.
"""

import argparse
import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

from benchmarks import venvs, workloads
from benchmarks.bare_side import BareFlow
from benchmarks.celery_side import CeleryPeer
from benchmarks.disturbance import PATIENCE_SECONDS
from benchmarks.figures import Figures, Workload, read_figures, write_figures
from benchmarks.http_side import http_peers
from benchmarks.machine import conditions
from benchmarks.memory import allow_many_jobs
from benchmarks.models import FOREST, LOGISTIC, ROW_GROUP_ROWS, quiet_mlflow, register, write_backlog
from benchmarks.pyfunq_side import PyFunQ, input_roots
from benchmarks.ray_side import RayServe
from benchmarks.report import PLAIN_CELERY, QUESTIONS, markdown, plot
from benchmarks.script_side import Script
from benchmarks.servers import Servers, Worker, embedded_servers, new_ledger
from benchmarks.sessions import Side
from benchmarks.workloads import Bench, Sizes, say

RESULTS = Path(__file__).parent / "results"
DEFAULT = "a,b,c,d,e,f"
WARM_ROWS, WARM_ROW_GROUP = 20_000, 5_000
_RECORDED = {
    "celery-batches": ["celery", "celery-batches"],
    "mlflow-serve": ["mlflow", "uvloop"],
    "mlserver": ["mlserver", "uvloop"],
    "ray": ["ray", "celery"],
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        default=DEFAULT,
        help=f"workloads, of {','.join(QUESTIONS)}; without it {DEFAULT}: g takes long and fills some gigabytes",
    )
    parser.add_argument("--peers", choices=("none", "local", "all"), default="local")
    parser.add_argument(
        "--venvs", type=Path, default=venvs.default_directory(), help="where `--peers all` makes theirs"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="a factor on the numbers of jobs and rows")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        help="seconds that each measurement has to be made while the host of a virtual machine takes nothing",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="a scaled run writes to `scaled` in it")
    found = parser.parse_args(argv)
    found.only = [name for name in found.only.replace(" ", "").split(",") if name]
    if unknown := [name for name in found.only if name not in QUESTIONS]:
        parser.error(f"no workload is called {', '.join(unknown)}")
    if found.rounds < 1 or found.scale <= 0:
        parser.error("--rounds and --scale are positive")
    return found


async def peers(asked: str, directory: Path, servers: Servers) -> tuple[list[Side], dict[str, str]]:
    """The peers, and the versions of what those in virtual environments run on."""
    if asked == "none":
        return [], {}
    plain = CeleryPeer(PLAIN_CELERY, "plain_celery", servers, 2)
    bare = BareFlow(servers, 5)
    for peer in (bare, plain):
        await peer.prepare()
    if asked == "local":
        return [bare, plain], {}
    made = venvs.make_venvs(directory)
    python = made["celery-batches"] / "bin" / "python"
    batched = CeleryPeer("celery-batches", "batched_celery", servers, 3, python)
    await batched.prepare()
    versions = {
        f"{package} ({name})": v
        for name, packages in _RECORDED.items()
        for package, v in venvs.installed(made[name], packages).items()
    }
    return [bare, plain, batched, *http_peers(servers, made), RayServe(servers, 4, made["ray"])], versions


async def prepare(options: argparse.Namespace, servers: Servers, stack: AsyncExitStack) -> Bench:
    directory = (servers.home / "inputs").resolve()
    directory.mkdir()
    os.environ.update(input_roots(directory))
    allow_many_jobs()
    with quiet_mlflow():
        models = [register(servers.mlflow, kind, servers.home / "files" / kind) for kind in (LOGISTIC, FOREST)]
    others, versions = await peers(options.peers, options.venvs, servers)
    scripts = [Script(servers, n) for n in (1, 2)] if options.peers != "none" else []
    for script in scripts:
        await script.prepare()
    found = await conditions(servers)
    found["versions"].update(versions)
    found |= {"scale": options.scale, "rounds": options.rounds, "command": options.command}
    worker = Worker("pyfunq", servers.settings(await new_ledger(servers.database, "ledger"), 1))
    stack.callback(worker.stop)
    await worker.ready()
    await worker.rest()
    figures = {name: Workload(name, found) for name in options.only}
    sizes = Sizes(options.scale)
    sides = (models, PyFunQ(worker), others, scripts)
    return Bench(servers, *sides, figures, sizes, options.rounds, directory, options.patience)


async def run(options: argparse.Namespace, finished: Callable[[Figures], None]) -> None:
    """Calls `finished` with workloads whose rounds are done: what comes after may fail."""
    with embedded_servers() as servers:
        async with AsyncExitStack() as stack:
            bench = await prepare(options, servers, stack)
            only = options.only
            if {"a", "b", "d"} & set(only):
                await workloads.singles(bench, only)
                finished(bench.only("a", "b", "d"))
            if {"c", "e"} & set(only):
                await with_backlog(bench, only)
                finished(bench.only("c", "e"))
            if "f" in only:
                await workloads.memory(bench)
                finished(bench.only("f"))
            if "g" in only:
                await workloads.depth(bench)
                finished(bench.only("g"))


async def with_backlog(bench: Bench, only: Sequence[str]) -> None:
    rows = bench.sizes.backlog_rows
    say(f"writing {rows:,} rows")
    backlog = write_backlog(bench.directory / "backlog.parquet", rows, bench.models, min(ROW_GROUP_ROWS, rows // 10))
    warm = write_backlog(bench.directory / "warm.parquet", WARM_ROWS, bench.models, WARM_ROW_GROUP)
    if "c" in only:
        await workloads.backlogs(bench, backlog, warm)
    if "e" in only:
        await workloads.latency_under_backlog(bench, backlog)


def write(figures: Figures, directory: Path) -> None:
    write_figures(directory / "figures.json", figures)
    everything = read_figures(directory / "figures.json")
    (directory / "table.md").write_text(markdown(everything))
    plot(everything, directory / "plot.png")


def command(words: Sequence[str]) -> str:
    """What repeats a run; where something lay on this machine is left out, as it does not matter elsewhere."""
    kept: list[str] = []
    for before, word in pairwise(("", *words)):
        if not any(place in (before, word) or word.startswith(f"{place}=") for place in ("--venvs", "--results")):
            kept.append(word)
    return shlex.join(["python", "-m", "benchmarks", *kept])


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    options.command = command(sys.argv[1:] if argv is None else argv)
    directory = options.results if options.scale == 1 else options.results / "scaled"

    # For every program that is started: two on two cores must not fight for them with threads of their own.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

    # So that whoever ends this program does not leave workers behind that stand still.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def finished(figures: Figures) -> None:
        write(figures, directory)
        say("\n" + markdown(figures))

    asyncio.run(run(options, finished))
    say(f"written to {directory}")


if __name__ == "__main__":
    main()
