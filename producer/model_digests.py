"""`pyfunq models digest`: what an operator writes down of a version's files after having looked at them."""

import json

from producer.output import show_text
from producer.registry import files_of, model_named, registry, version_meant
from pyfunq.model_digest import digest_of_files
from pyfunq.model_uri import check_allowed, parse_model_uri
from pyfunq.settings import Settings


def show_digest(settings: Settings, uri: str) -> None:
    """A line for the file that PYFUNQ_TRUSTED_MODELS names. Raises ModelNotFound, RegistryUnavailable."""
    parsed = parse_model_uri(uri)
    check_allowed(parsed, settings.allowed_models)
    with registry(settings) as client:
        match parsed.kind:
            case "model_id":
                name = str(client.get_logged_model(parsed.model_id).name), str(parsed.model_id)
            case "run":
                name = f"runs:/{parsed.run_id}", str(parsed.path)
            case _:
                version = version_meant(client, model_named(client, str(parsed.name)), parsed)
                parsed = parse_model_uri(f"models:/{parsed.name}/{version}")
                name = str(parsed.name), str(version)
        with files_of(client, settings, parsed) as files:
            digest = digest_of_files(files.fetch_all())
    show_text(f"{json.dumps('/'.join(name))}: {json.dumps(digest)}")
