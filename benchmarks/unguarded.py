"""The worker's app with nothing that makes it reliable, to measure what that costs (`celery -A benchmarks.unguarded`).

No thread looks after siblings or the beat, results are written to whatever job has their id, and calls have no limits.
Heartbeats and rescue are switched off by their intervals. Never run it for anything else.
"""

import sys
from typing import Any

from pyfunq import ledger

_BY_KEY = "WHERE job.id = ANY (ARRAY[d.id])"
_GUARDED = f"{_BY_KEY} AND job.status || '' = $2 AND job.attempt = d.attempt AND job.worker_id = $1"
_queries = ledger.queries


def _unguarded_queries() -> dict[str, str]:
    queries = dict(_queries())
    for name in ("finish", "finish_alike"):
        if _GUARDED not in queries[name]:
            raise RuntimeError(f"the guard of `{name}` reads otherwise now: adapt this benchmark")
        # The arguments stay, so that the same call fits.
        unguarded = f"{_BY_KEY} AND $1::uuid IS NOT NULL AND $2::text IS NOT NULL"
        queries[name] = queries[name].replace(_GUARDED, unguarded)
    return queries


ledger.queries = _unguarded_queries  # type: ignore[assignment]

from worker import process, upkeep  # noqa: E402


class _NoStandIn:
    def __init__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass


def _call(_: Any, jobs: Any, function: Any) -> Any:
    return function()


upkeep.StandIn = _NoStandIn  # type: ignore[assignment,misc]
process.WorkerProcess.call = _call  # type: ignore[assignment]
process.WorkerProcess.load = _call  # type: ignore[assignment]

if "celery" in sys.argv[0]:
    from worker.app import app  # noqa: F401
