"""The OpenAPI document: every route with every answer, and the models that are known as schemas and examples."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from producer.api.bodies import JSON
from producer.api.known_models import Seen, example_input, input_specs
from producer.api.problems import MEDIA_TYPE
from pyfunq.entries import Resolution

_METHODS = ("get", "post", "put", "patch", "delete")
_EVERYWHERE = {
    "400": "Malformed",
    "401": "No valid API key",
    "403": "The API key may not do this",
    "408": "Too slow",
    "414": "The address is too long",
    "429": "Too many requests",
    "431": "Headers too large",
    "503": "Cannot be done now; `Retry-After` says when to ask again",
}
_WITH_BODY = {"413": "Too large", "415": "Another media type", "422": "Understood, but not fit"}
_MOST_MODELS = 100
_SCHEMAS = "#/components/schemas/"
_JSON_TYPES: dict[str, dict[str, Any]] = {
    "double": {"type": ["number", "null"]},
    "float": {"type": ["number", "null"]},
    "long": {"type": "integer"},
    "integer": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "boolean": {"type": "boolean"},
    "string": {"type": ["string", "null"]},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "datetime": {"type": ["string", "null"], "description": "ISO 8601, without a time zone."},
}


def base_document(app: FastAPI) -> dict[str, Any]:
    """Without models."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                _complete(path, operations[method], schemas)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are not answered
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `pyfunq keys create`."},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    document["security"] = [{}, {"bearer": []}, {"header": []}]
    return document


def _complete(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """What every route can answer; problem documents as such; schemas where references look for them."""
    answers = operation["responses"]
    problem = {"$ref": f"{_SCHEMAS}{'InferenceError' if path.startswith('/v2') else 'ProblemDocument'}"}
    kind = JSON if path.startswith("/v2") else MEDIA_TYPE
    more = {**_EVERYWHERE, **(_WITH_BODY if "requestBody" in operation else {})}
    for status, description in more.items():
        answers.setdefault(status, {"description": description})
    for status, one in answers.items():
        if int(status[:1]) >= 4:
            one["content"] = {kind: {"schema": problem}}
    for media in operation.get("requestBody", {}).get("content", {}).values():
        if "schema" in media:
            media["schema"] = _hoisted(media["schema"], schemas)


def _hoisted(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema whose own definitions are moved to the document's components."""
    schema = _pointed(schema)
    for name, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    return schema


def _pointed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: inner.replace("#/$defs/", _SCHEMAS) if key == "$ref" and isinstance(inner, str) else _pointed(inner)
            for key, inner in value.items()
        }
    return [_pointed(inner) for inner in value] if isinstance(value, list) else value


def with_models(base: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
    """The document with what the model URIs in use take; of more than a hundred, with the first by name."""
    described = [r for r in seen.resolutions if input_specs(r.version.signature) is not None][:_MOST_MODELS]
    if not described:
        return dict(base)
    document = copy.deepcopy(dict(base))
    schemas = document["components"]["schemas"]
    named = {resolution.model_uri: _schema_name(resolution, schemas) for resolution in described}
    for resolution in described:
        schemas[named[resolution.model_uri]] = job_schema(resolution)
    examples = {named[r.model_uri]: (r, example_input(r.version.signature)) for r in described}
    jobs = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"][JSON]
    jobs["schema"] = {"anyOf": [jobs["schema"], *({"$ref": f"{_SCHEMAS}{name}"} for name in named.values())]}
    jobs["examples"] = {
        name: {"summary": r.model_uri, "value": {"model": r.model_uri, **example}}
        for name, (r, example) in examples.items()
        if example
    }
    for path in ("/invocations", "/predict"):
        _add_scoring_examples(document["paths"][path]["post"], examples)
    return document


def _add_scoring_examples(
    operation: dict[str, Any], examples: Mapping[str, tuple[Resolution, dict[str, Any] | None]]
) -> None:
    operation["requestBody"]["content"][JSON]["examples"] = {
        name: {"summary": f"?model={r.model_uri}", "value": example}
        for name, (r, example) in examples.items()
        if example
    }
    model = next(p for p in operation["parameters"] if p["name"] == "model")
    model["examples"] = {name: {"value": r.model_uri} for name, (r, example) in examples.items() if example}


def _schema_name(resolution: Resolution, taken: Mapping[str, Any]) -> str:
    """What a component may be called."""
    stem = "job." + re.sub(r"[^A-Za-z0-9_-]+", ".", resolution.model_uri.partition("/")[2])
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}.{number}"
    return name


def job_schema(resolution: Resolution) -> dict[str, Any]:
    """A job of this model URI, whose signature is known, as `POST /v1/jobs` takes it."""
    specs = input_specs(resolution.version.signature) or ()
    schema: dict[str, Any] = {
        "type": "object",
        "title": resolution.model_uri,
        "description": f"Version {resolution.version.version} serves it.",
        "properties": {"model": {"const": resolution.model_uri}},
        "required": ["model"],
    }
    if all(spec["type"] != "tensor" and spec.get("name") is not None for spec in specs):
        record = _record(specs)
        forms = {
            "dataframe_records": {"type": "array", "minItems": 1, "items": record},
            "dataframe_split": _split(specs),
        }
        schema["properties"] |= forms
        schema["oneOf"] = [{"required": [form]} for form in forms]
    else:
        schema["properties"]["inputs"] = {"description": ", ".join(_words(spec) for spec in specs)}
        schema["required"].append("inputs")
    return schema


def _words(spec: Mapping[str, Any]) -> str:
    if spec["type"] != "tensor":
        return str(spec["type"])
    tensor = spec["tensor-spec"]
    name = f"{spec['name']}: " if spec.get("name") else ""
    return f"{name}tensor {tensor['dtype']} {list(tensor['shape'])}"


def _record(specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {spec["name"]: _value(spec) for spec in specs},
        "required": [spec["name"] for spec in specs if _is_required(spec)],
        "additionalProperties": False,
    }


def _split(specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [spec["name"] for spec in specs]
    return {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"enum": names}, "uniqueItems": True},
            "data": {"type": "array", "minItems": 1, "items": {"type": "array", "maxItems": len(names)}},
        },
        "required": ["columns", "data"],
    }


def _is_required(spec: Mapping[str, Any]) -> bool:
    required = spec.get("required")
    return bool(required if required is not None else not spec.get("optional", False))


def _value(spec: Mapping[str, Any]) -> dict[str, Any]:
    match spec["type"]:
        case "array":
            return {"type": "array", "items": _value(spec["items"])}
        case "object":
            return {"type": "object", "properties": {n: _value(s) for n, s in spec.get("properties", {}).items()}}
        case "map":
            return {"type": "object", "additionalProperties": _value(spec["values"])}
        case kind:
            return _JSON_TYPES.get(kind, {})
