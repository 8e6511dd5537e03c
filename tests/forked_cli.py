"""`pyfunq` in a process forked from one that has imported it: as a new one, without its second of imports."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# One for all tests of a process: it is started once, with what is named here.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["producer.cli", "mlflow.pyfunc", "pandas", "pyarrow.parquet", "rich.progress", "yaml"])


def run_pyfunq(
    arguments: Sequence[str | Path], environment: Mapping[str, str], stdin: str | None = None, *, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, with text captured. Raises TimeoutExpired."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin or "")
        process = forks.Process(target=_main, args=(words, dict(environment), [str(file) for file in files]))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, seconds)
        code = process.exitcode
        process.close()
        return subprocess.CompletedProcess(words, code, files[1].read_text(), files[2].read_text())


def _main(arguments: list[str], environment: dict[str, str], files: list[str]) -> None:
    for number, name in enumerate(files):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["pyfunq", *arguments]
    from producer.cli import main

    main()
