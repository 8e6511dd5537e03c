"""PyFunQ's library: submit prediction jobs for MLflow models, wait for them, read their results.

Importing it is light: no MLflow, pandas or Celery until something needs them.
"""

from typing import TYPE_CHECKING, Any

from pyfunq.errors import PyFunQError
from pyfunq.job import Batch, Job, JobError, JobStatus, Lane

if TYPE_CHECKING:
    from pyfunq.client import AsyncClient, Client
    from pyfunq.settings import Settings

__all__ = [
    "AsyncClient",
    "Batch",
    "Client",
    "Job",
    "JobError",
    "JobStatus",
    "Lane",
    "PyFunQError",
    "Settings",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client"):
        from pyfunq import client

        return getattr(client, name)
    if name == "Settings":
        from pyfunq.settings import Settings

        return Settings
    raise AttributeError(f"module 'pyfunq' has no attribute {name!r}")
