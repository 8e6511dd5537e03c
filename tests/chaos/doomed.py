"""The worker's app, and a producer, that kill themselves with SIGKILL at a named point, once.

A file in the directory PYFUNQ_TEST_DOOM, named for the point, says who dies: the child or the whole worker.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from pyfunq.fault_points import FaultPoint, on_reach


def die_where_told(point: FaultPoint) -> None:
    """Of the processes that find the file, the one that can take it away."""
    order = Path(os.environ["PYFUNQ_TEST_DOOM"]) / point.name
    taken = order.with_suffix(".taken")
    with suppress(FileNotFoundError):
        order.rename(taken)
        who = taken.read_text()
        taken.with_suffix(".died").write_text(repr(time.time()))
        if who == "worker":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


on_reach(die_where_told)


def produce(model: str, jobs: int) -> None:
    from pyfunq.client import Client
    from pyfunq.environment import load_settings

    with Client(load_settings()) as client:
        inputs = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}
        done = client.submit_many(model, [inputs] * jobs)
        print(len(done), flush=True)


if __name__ == "__main__":
    produce(sys.argv[1], int(sys.argv[2]))
elif "celery" in sys.argv[0]:
    from worker.app import app  # noqa: F401
