"""The embedded MLflow server: tracking, registry and artifact proxy on SQLite, on 127.0.0.1."""

import http.client
import importlib.util
import os
import sys
import urllib.request
from functools import partial
from typing import ClassVar

from pyfunq.errors import ServerFailed
from pyfunq.local.files import make_directory
from pyfunq.local.process import GuardedProcess
from pyfunq.local.server import EmbeddedServer, free_port, is_free, listens, port_was_taken
from pyfunq.local.state import StateDirectory

READY_SECONDS = 120.0
"""It takes 5 to 10 s; the first start also makes its tables."""
STOP_SECONDS = 10.0
PORT_ATTEMPTS = 3
FOREIGN_VARIABLES = frozenset(
    {
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_BACKEND_STORE_URI",
        "MLFLOW_READ_REPLICA_BACKEND_STORE_URI",
        "MLFLOW_REGISTRY_STORE_URI",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT",
        "MLFLOW_ARTIFACTS_ONLY",
        "MLFLOW_STATIC_PREFIX",
        "MLFLOW_GUNICORN_OPTS",
        "MLFLOW_UVICORN_OPTS",
    }
)
"""The user's settings for another server, which this one would take for its own."""


class EmbeddedMLflow(EmbeddedServer):
    """`port` is the one to listen on; without it a free one is taken, and kept."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, state: StateDirectory, port: int | None = None) -> None:
        super().__init__(state)
        self.port = port

    def start(self) -> str:
        """The tracking URI, http://127.0.0.1:<port>, once the server answers."""
        if importlib.util.find_spec("mlflow") is None:
            raise ServerFailed("MLflow is not installed: pip install 'pyfunq[all]', or set MLFLOW_TRACKING_URI")
        if self.port and not is_free(self.port):
            raise ServerFailed(f"mlflow cannot start: port {self.port} of 127.0.0.1 is taken by another program")
        attempts = 1 if self.port else PORT_ATTEMPTS
        for attempt in range(attempts):
            port = self.port or free_port()
            process = self._launch(port)
            try:
                self._run(process, partial(_healthy, process, port), READY_SECONDS)
            except ServerFailed:
                if not port_was_taken(process) or attempt == attempts - 1:
                    raise
            else:
                break
        self.port = port
        return f"http://127.0.0.1:{port}"

    def _launch(self, port: int) -> GuardedProcess:
        directory = self.state.home / "mlflow"
        make_directory(directory, 0o700)
        make_directory(directory / "artifacts", 0o700)
        env = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        # Its job runners would be nine more processes and 1.5 GB.
        env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        options = {
            "--backend-store-uri": "sqlite:///mlflow.db",
            "--artifacts-destination": str(directory / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(port),
            "--workers": "1",
        }
        argv = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts"]
        argv += [part for option in options.items() for part in option]
        return self.state.start(self.name, argv, env=env, cwd=directory, stop_seconds=STOP_SECONDS)


def _healthy(process: GuardedProcess, port: int) -> bool:
    """Another MLflow on the port would answer, too, while ours is still starting."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows our loopback
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200) and listens(process, port)
    except (http.client.HTTPException, OSError):
        return False
