"""What a model's files say it needs, and which of that this environment lacks."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

# Modules whose distribution is called something else, among those that models commonly need.
_DISTRIBUTIONS = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "faiss": "faiss-cpu",
    "imblearn": "imbalanced-learn",
    "PIL": "pillow",
    "pytorch_lightning": "pytorch-lightning",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}

_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement and the version that this environment has instead; None: it has none."""

    requirement: str
    installed: str | None

    def __str__(self) -> str:
        return f"{without_credentials(self.requirement)} (installed: {self.installed or 'none'})"


def without_credentials(text: str) -> str:
    """A text with URLs, without the users and passwords in these."""
    return _CREDENTIALS.sub(r"\1…@", text)


def read_requirements(model_dir: Path) -> list[str]:
    """The requirements beside a model's MLmodel: of requirements.txt, else of conda.yaml's pip part, else none.

    pip's options among them (index URLs, other files, hashes) are left out.
    """
    listed = model_dir / "requirements.txt"
    if listed.is_file():
        return list(_requirements(listed.read_text(encoding="utf-8-sig").replace("\\\n", " ").splitlines()))
    conda = model_dir / "conda.yaml"
    return list(_requirements(_pip_part(conda))) if conda.is_file() else []


def unmet(requirements: Sequence[str]) -> list[Unmet]:
    """Those that the installed distributions do not meet; one whose marker excludes this platform is met.

    Of a requirement with a URL only the name is looked at. What cannot be read as a requirement is not met.
    """
    found = (_unmet(requirement) for requirement in requirements)
    return [one for one in found if one is not None]


def requirement_for(module: str, requirements: Sequence[str]) -> str | None:
    """The requirement whose distribution provides a module, as far as names tell; None if none does."""
    top = module.partition(".")[0]
    wanted = {
        canonicalize_name(name) for name in (top, module, _DISTRIBUTIONS.get(module), _DISTRIBUTIONS.get(top)) if name
    }
    for requirement in requirements:
        name = name_of(requirement)
        # One of several builds: faiss-gpu, opencv-python-headless, tensorflow-cpu.
        if name is not None and (name in wanted or any(name.startswith(f"{one}-") for one in wanted if len(one) > 3)):
            return requirement
    return None


def name_of(requirement: str) -> str | None:
    """The distribution's normalised name; None where a requirement does not say it."""
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement:
        wheel = _wheel(requirement)
        return wheel[0] if wheel else None


def _requirements(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        text = line.strip()
        text = "" if text.startswith(("#", "-")) else text.partition(" #")[0].partition(" --")[0].strip()
        if text:
            yield text


def _pip_part(conda: Path) -> list[str]:
    import yaml

    content = yaml.safe_load(conda.read_text())
    listed = content.get("dependencies") if isinstance(content, dict) else None
    parts = [part["pip"] for part in listed or () if isinstance(part, dict) and isinstance(part.get("pip"), list)]
    return [str(line) for part in parts for line in part]


def _unmet(requirement: str) -> Unmet | None:
    try:
        wanted = Requirement(requirement)
    except InvalidRequirement:
        wheel = _wheel(requirement)
        if wheel is None:
            return Unmet(requirement, None)
        has = _installed(wheel[0])
        return None if has == str(wheel[1]) else Unmet(requirement, has)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return None
    has = _installed(wanted.name)
    if has is None:
        return Unmet(requirement, None)
    try:
        is_met = wanted.url is not None or wanted.specifier.contains(Version(has), prereleases=True)
    except InvalidVersion:
        is_met = not wanted.specifier
    return None if is_met else Unmet(requirement, has)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _wheel(requirement: str) -> tuple[str, Version] | None:
    """Name and version of a wheel that is named by its path or URL."""
    try:
        name, version, _, _ = parse_wheel_filename(requirement.partition("#")[0].rpartition("/")[2])
    except (InvalidWheelFilename, InvalidVersion):
        return None
    return name, version
