"""PostgreSQL, Redis and an MLflow server for one machine, and the guards that end them with their starter.

A program takes the state directory (`with StateDirectory(home).lock():`), starts servers, tells other programs
where they are (`write_endpoints`), and stops them. What it did not stop, the guards stop when it is gone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyfunq.local.mlflow_server import EmbeddedMLflow
    from pyfunq.local.postgres import EmbeddedPostgres
    from pyfunq.local.process import GuardedProcess
    from pyfunq.local.redis import EmbeddedRedis
    from pyfunq.local.state import StateDirectory, read_endpoints

__all__ = [
    "EmbeddedMLflow",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "GuardedProcess",
    "StateDirectory",
    "read_endpoints",
]

_MODULES = {
    "EmbeddedMLflow": "mlflow_server",
    "EmbeddedPostgres": "postgres",
    "EmbeddedRedis": "redis",
    "GuardedProcess": "process",
    "StateDirectory": "state",
    "read_endpoints": "state",
}


def __getattr__(name: str) -> object:
    """Imported when used: every command reads the endpoints, but not all installs have what the servers need."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
