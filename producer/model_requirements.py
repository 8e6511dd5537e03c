"""What a model's files say it needs, read without fetching the model itself."""

from dataclasses import dataclass, replace
from pathlib import Path

from producer.output import say, show_json, show_table
from producer.registry import files_of, model_named, registry
from pyfunq.errors import ModelNotFound
from pyfunq.model_uri import ModelURI, check_allowed, parse_model_uri
from pyfunq.requirements import Unmet, read_requirements, unmet, without_credentials
from pyfunq.settings import Settings

QUEUE_TAG = "pyfunq.queue"
_FILES = ("MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """`requirements` as pip takes them; `python` is a version such as 3.11.7, None where the files do not say it."""

    uri: ModelURI
    requirements: tuple[str, ...]
    python: str | None
    queue: str | None = None
    """What the registered model's tag says."""


def needs_of(settings: Settings, uri: str) -> Needs:
    """Raises ModelNotFound where there is no model, RegistryUnavailable where its files cannot be read."""
    parsed = parse_model_uri(uri)
    check_allowed(parsed, settings.allowed_models)
    with registry(settings) as client, files_of(client, settings, parsed) as files:
        found = {path.name for path in files.fetch(*_FILES)}
        if "MLmodel" not in found:
            raise ModelNotFound(f"the files of {parsed} hold no MLmodel")
        tags = model_named(client, parsed.name).tags if parsed.name is not None else {}
        return Needs(
            uri=parsed,
            requirements=tuple(read_requirements(files.directory)),
            python=_python(files.directory / "python_env.yaml"),
            queue=tags.get(QUEUE_TAG),
        )


def show_requirements(settings: Settings, uri: str, *, check: bool, as_json: bool) -> bool:
    """Shows what a model needs, or what of it is not here, without passwords in addresses; whether all is well."""
    needs = needs_of(settings, uri)
    lacking = [replace(one, requirement=without_credentials(one.requirement)) for one in _lacking(needs, check)]
    shown = [without_credentials(line) for line in needs.requirements]
    if as_json:
        facts = {"model_uri": str(needs.uri), "python": needs.python, "requirements": shown}
        show_json(facts | ({"unmet": lacking} if check else {}))
    elif not check:
        for line in shown:
            print(line)
        if not shown:
            say(f"the files of {needs.uri} name no requirements")
    elif lacking:
        show_table(("needs", "installed here"), ((one.requirement, one.installed) for one in lacking))
    else:
        say(f"this environment has what {needs.uri} needs")
    return not lacking


def _lacking(needs: Needs, check: bool) -> list[Unmet]:
    return unmet(needs.requirements) if check else []


def _python(path: Path) -> str | None:
    import yaml

    described = yaml.safe_load(path.read_text()) if path.is_file() else None
    version = described.get("python") if isinstance(described, dict) else None
    return version if isinstance(version, str) else None
