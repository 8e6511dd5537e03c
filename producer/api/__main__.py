"""The API's server process: `python -m producer.api --host 127.0.0.1 --port 8080`."""

import argparse
import sys

from producer.api.serving import run
from pyfunq.environment import load_settings
from pyfunq.errors import PyFunQError


def main() -> None:
    """Ends with 1 and one line that says why where it cannot start."""
    parser = argparse.ArgumentParser(prog="pyfunq api")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    try:
        run(load_settings(), asked.host, asked.port, asked.processes)
    except PyFunQError as exc:
        sys.exit(f"error: {exc.message}")


if __name__ == "__main__":
    main()
