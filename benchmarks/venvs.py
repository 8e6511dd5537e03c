"""Virtual environments for peers that cannot share this one, made with pip when they are asked for."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import platformdirs

# The models are pickles: what they are made of must be of the same versions everywhere.
_OF_THE_MODEL = ("scikit-learn", "numpy", "scipy", "pandas", "cloudpickle")
_REQUIREMENTS = {
    "celery-batches": ["celery[redis]<5.7", "celery-batches==0.11", "asyncpg", "mlflow-skinny"],
    "mlflow-serve": ["mlflow", "uvloop"],
    # uvloop after 0.21 has no event loop for MLServer 1.7.1 to find.
    "mlserver": ["mlserver==1.7.1", "mlserver-mlflow==1.7.1", "uvloop==0.21.0", "mlflow"],
    # Its extra brings Celery without a Redis client.
    "ray": ["ray[serve-async-inference]==2.60.0", "celery[redis]", "mlflow-skinny"],
}
_OURS = ("mlflow", "mlflow-skinny", "asyncpg")
_MARK = "made-of.json"


def default_directory() -> Path:
    return Path(platformdirs.user_cache_dir("pyfunq")) / "benchmark-venvs"


def requirements(name: str) -> list[str]:
    pinned = [f"{r}=={version(r)}" if r in _OURS else r for r in _REQUIREMENTS[name]]
    return [*pinned, *(f"{package}=={version(package)}" for package in _OF_THE_MODEL)]


def make_venvs(directory: Path) -> dict[str, Path]:
    """All of them by name; one whose requirements are what they were is left as it is."""
    return {name: _make(directory / name, requirements(name)) for name in _REQUIREMENTS}


def _make(venv: Path, wanted: list[str]) -> Path:
    mark = venv / _MARK
    content = json.dumps({"python": sys.version, "requirements": wanted}, indent=1)
    if mark.exists() and mark.read_text() == content:
        return venv
    shutil.rmtree(venv, ignore_errors=True)
    print(f"making {venv}: {', '.join(wanted)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted], check=True)
    mark.write_text(content)
    return venv


def installed(venv: Path, packages: list[str]) -> dict[str, str]:
    """The versions of packages in a virtual environment, for the record."""
    program = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    command = [str(venv / "bin" / "python"), "-c", program, *packages]
    found: dict[str, str] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found
