"""`pyfunq image`: the Dockerfile of a worker image that has what a model needs, and a queue of its own for it."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from producer.model_requirements import QUEUE_TAG, Needs, needs_of
from producer.output import say
from pyfunq.environment import load_settings
from pyfunq.errors import FileUnreadable
from pyfunq.requirements import name_of, without_credentials

_PYTHONS = ("3.11", "3.12", "3.13")
_DEFAULT_PYTHON = "3.12"
_QUEUE = re.compile(r"model(\.[A-Za-z0-9_-]+)+")
_LONGEST_NAME = 80
# Wheels that expect a library of the system.
_SYSTEM_PACKAGES = {"lightgbm": "libgomp1"}

_TEMPLATE = """\
# A worker for {uri}, which needs:
{needs}
# Build it in PyFunQ's repository:
#   docker build -f {file} -t {image} .

FROM python:{python}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/pyfunq
COPY pyproject.toml constraints.txt ./
RUN touch README.md \\
 && for package in pyfunq producer worker; do mkdir "$package" && touch "$package/__init__.py"; done
# The model's own pins decide; what they leave open is the newest that goes with them.
RUN pip --python /opt/pyfunq/bin/python install '.[worker]'{requirements}
COPY pyfunq pyfunq
COPY producer producer
COPY worker worker
COPY deploy/healthcheck.py /opt/pyfunq/healthcheck.py
RUN pip --python /opt/pyfunq/bin/python install --no-deps --force-reinstall . \\
 && chmod 0644 /opt/pyfunq/healthcheck.py

FROM python:{python}-slim
{system}RUN pip uninstall --yes --root-user-action=ignore pip \\
 && groupadd --gid 10001 pyfunq \\
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin pyfunq \\
 && install -d -o pyfunq -g pyfunq -m 0750 /var/lib/pyfunq /var/lib/mlflow /var/lib/mlflow/tmp
COPY --from=build /opt/pyfunq /opt/pyfunq
ENV PATH=/opt/pyfunq/bin:$PATH \\
    PYTHONUNBUFFERED=1 \\
    PYTHONDONTWRITEBYTECODE=1 \\
    PYFUNQ_HOME=/var/lib/pyfunq \\
    MLFLOW_DISABLE_TELEMETRY=true \\
    GIT_PYTHON_REFRESH=quiet
USER pyfunq
WORKDIR /var/lib/pyfunq
ENTRYPOINT ["pyfunq"]
CMD ["worker", "--queues", "{queue}"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What goes into an image. `left_out` says of requirements why they do not."""

    uri: str
    python: str
    requirements: tuple[str, ...]
    left_out: tuple[str, ...]
    queue: str
    image: str


def image(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A model URI, such as models:/iris@champion.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it to this file, not to stdout (-).")
    ] = None,
) -> None:
    """Write the Dockerfile of a worker image that has what a model needs."""
    output = None if str(output) == "-" else output
    needs = needs_of(load_settings(), uri)
    planned = plan(needs, own_bounds())
    text = dockerfile(planned, output.name if output else "Dockerfile")
    if output is None:
        print(text, end="")
    else:
        try:
            output.write_text(text)
        except OSError as exc:
            raise FileUnreadable(f"{output}: {exc.strerror}") from exc
    for reason in planned.left_out:
        say(f"left out: {reason}")
    if needs.python is not None and not needs.python.startswith(f"{planned.python}."):
        say(f"the model was made with Python {needs.python}; PyFunQ runs on {', '.join(_PYTHONS)}")
    build = f"docker build -f {shlex.quote(str(output or '-'))} -t {planned.image} ."
    say(f"build it, in PyFunQ's repository:  {build if output else f'pyfunq image {planned.uri} | {build}'}")
    if needs.queue != planned.queue:
        say(f"give the model a queue of its own: tag the registered model with {QUEUE_TAG}={planned.queue}")
    say(f"start its workers:                 docker run ... {planned.image} worker --queues {planned.queue}")


def own_bounds() -> list[str]:
    """What PyFunQ's worker requires itself."""
    listed = metadata.requires("pyfunq") or []
    return [r.partition(";")[0].strip() for r in listed if "extra ==" not in r or re.search(r"extra == .worker.", r)]


def plan(needs: Needs, bounds: Sequence[str]) -> Plan:
    """Leaves out what contradicts PyFunQ's own bounds, and what pip could not install from elsewhere."""
    own = {name: bound for bound in bounds if (name := name_of(bound)) is not None}
    kept: list[str] = []
    left_out: list[str] = []
    for line in needs.requirements:
        try:
            wanted = Requirement(line) if line.isprintable() else None
        except InvalidRequirement:
            wanted = None
        if wanted is None:
            left_out.append(f"{ascii(without_credentials(line))[1:-1]}: this is no name that pip can install anywhere")
            continue
        if without_credentials(line) != line:
            left_out.append(f"{without_credentials(line)}: an image is no place for a password")
            continue
        bound = own.get(name_of(line) or "")
        if bound is not None and not _goes_with(wanted, Requirement(bound)):
            left_out.append(f"{line}: PyFunQ itself needs {bound}; PYFUNQ_MODEL_ENVS=auto gives the model its own")
            continue
        kept.append(str(wanted))
    name = slug(needs.uri.name or needs.uri.model_id or str(needs.uri.run_id))
    tagged = needs.queue if needs.queue is not None and _QUEUE.fullmatch(needs.queue) else None
    minor = ".".join((needs.python or "").split(".")[:2])
    return Plan(
        uri=str(needs.uri),
        python=minor if minor in _PYTHONS else _DEFAULT_PYTHON,
        requirements=tuple(kept),
        left_out=tuple(left_out),
        queue=tagged or f"model.{name}",
        image=f"pyfunq-{name.lower().strip('-_')}",
    )


def dockerfile(plan: Plan, file: str) -> str:
    """The text. Requirements are the model author's words: each is quoted for the shell, and of one line."""
    system = sorted({_SYSTEM_PACKAGES[n] for r in plan.requirements if (n := name_of(r)) in _SYSTEM_PACKAGES})
    return _TEMPLATE.format(
        uri=plan.uri,
        needs="\n".join(_comments(plan)),
        file=file,
        image=plan.image,
        python=plan.python,
        requirements="".join(f" \\\n    {shlex.quote(r)}" for r in plan.requirements),
        system=_install(system),
        queue=plan.queue,
    )


def slug(name: str) -> str:
    """A name as queues and images can have it; `bulk` and `first` are parts of queues' names already."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:_LONGEST_NAME]
    return f"{plain}-" if plain in ("bulk", "first") else plain


def _goes_with(wanted: Requirement, own: Requirement) -> bool:
    """Whether one version can be both: told of pins and of bounds that a pin of the other could tell."""
    pins = [Version(s.version) for s in wanted.specifier if s.operator in ("==", "===") and not s.version.endswith("*")]
    if pins:
        return all(own.specifier.contains(pin, prereleases=True) for pin in pins)
    lowest = [Version(s.version) for s in own.specifier if s.operator == ">="]
    below = [s for s in wanted.specifier if s.operator in ("<", "<=")]
    return not any(
        Version(s.version) < low or (s.operator == "<" and Version(s.version) == low) for s in below for low in lowest
    )


def _comments(plan: Plan) -> Iterable[str]:
    yield from (f"#   {r}" for r in plan.requirements or ("nothing beyond PyFunQ's own",))
    yield from (f"# Left out: {reason}" for reason in plan.left_out)


def _install(packages: Sequence[str]) -> str:
    if not packages:
        return ""
    return (
        f"RUN apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)} \\\n"
        " && rm -rf /var/lib/apt/lists/*\n"
    )
