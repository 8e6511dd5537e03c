"""The models' desk: what a process asks the ledger and the registry about models, and tells the ledger."""

import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from pyfunq.entries import Asked, ClaimedJob, ModelTags, ModelVersion, Wanted
from pyfunq.errors import LedgerUnavailable
from pyfunq.model_uri import ModelURI, check_allowed, parse_model_uri
from worker.loading import LoadedModel
from worker.registry import Registry

if TYPE_CHECKING:
    from worker.process import WorkerProcess

log = logging.getLogger(__name__)

_NEVER = datetime.max.replace(tzinfo=UTC)


class ModelDesk:
    """Safe for the threads of a process."""

    def __init__(self, process: "WorkerProcess", registry: Registry) -> None:
        self._process = process
        self._registry = registry
        self._versions: dict[int, ModelVersion] = {}
        self._reported: dict[str, int] = {}
        self._reported_as: UUID | None = None

    def resolve(self, job: ClaimedJob) -> tuple[Wanted, ModelTags]:
        """What the job's model URI stands for, and how its jobs are predicted.

        The ledger's word counts; the registry is asked only for a URI that nobody has resolved yet. Raises
        ModelNotAllowed, ModelNotFound or RegistryUnavailable.
        """
        uri = self._allowed(job.model_uri)
        if job.version_id is None:
            return self._ask_registry(uri)
        return self._wanted(job.version_id, job.good_version_id), ModelTags(
            confidence=job.confidence, max_rows=job.max_rows
        )

    def look_up(self, model_uri: str) -> Wanted:
        """What a model URI stands for; raises as `resolve` does."""
        uri = self._allowed(model_uri)
        (asked,) = self._patiently_asked(str(uri))
        return self._ask_registry(uri)[0] if asked.wanted is None else self._wanted(*asked.wanted)

    def wanted(self, asked: Asked) -> Wanted | None:
        return None if asked.wanted is None else self._wanted(*asked.wanted)

    def clock(self) -> datetime:
        return self._process.patiently(lambda: self._process.ledger.clock())

    def asked(self, model_uris: list[str], since: datetime) -> list[Asked]:
        return self._process.run(self._process.ledger.asked_models(model_uris, since))

    def made_ready(self, model_uri: str, model: LoadedModel) -> None:
        """Lets producers check inputs against the version's signature, and other processes begin with the version."""
        ledger, version_id, signature = self._process.ledger, model.version.id, model.signature
        self._process.patiently(lambda: ledger.made_ready(model_uri, version_id, signature))

    def not_loaded(self, model_uri: str, version: ModelVersion, reason: str) -> None:
        with suppress(LedgerUnavailable):
            self.begin_load(model_uri, version, self._process.settings.load_failure_seconds)
            self.end_load(version, reason)

    def begin_load(self, model_uri: str, version: ModelVersion, pause_seconds: float) -> None:
        process = self._process
        begun = process.ledger.begin_load(process.id, model_uri, version.id, pause_seconds=pause_seconds)
        process.run(begun)

    def end_load(self, version: ModelVersion, reason: str | None) -> None:
        process = self._process
        process.run(process.ledger.end_load(process.id, version.id, reason=reason))

    def ended_in_load(self, version: ModelVersion) -> float | None:
        return self._process.run(self._process.ledger.ended_in_load(socket.gethostname(), version.id))

    def queued_inputs(self, model_uri: str, at_most: int) -> list[tuple[str, bytes]]:
        return self._process.run(self._process.ledger.queued_inputs(model_uri, at_most))

    def report(self, models: Mapping[str, LoadedModel]) -> None:
        """Brings the ledger's list of what this process serves up to date."""
        process = self._process
        if self._reported_as != process.id:
            self._reported, self._reported_as = {}, process.id
        for model_uri, model in models.items():
            if self._reported.get(model_uri) != model.version.id:
                about = (model.version.id, model.size_bytes, model.load_seconds)
                process.run(process.ledger.serve(process.id, model_uri, *about))
                self._reported[model_uri] = model.version.id
        if gone := [uri for uri in self._reported if uri not in models]:
            process.run(process.ledger.serve_no_more(process.id, gone))
            for uri in gone:
                del self._reported[uri]

    def _allowed(self, model_uri: str) -> ModelURI:
        uri = parse_model_uri(model_uri)
        check_allowed(uri, self._process.settings.allowed_models)
        return uri

    def _patiently_asked(self, model_uri: str) -> list[Asked]:
        ledger = self._process.ledger
        return self._process.patiently(lambda: ledger.asked_models([model_uri], _NEVER))

    def _ask_registry(self, uri: ModelURI) -> tuple[Wanted, ModelTags]:
        found = self._registry.resolve(uri)
        tags = found.means(confidence=self._process.settings.confidence)
        point = self._process.patiently(
            lambda: self._process.ledger.point(str(uri), found.version, tags, found.updated_ms)
        )
        return Wanted(point), tags

    def _wanted(self, version_id: int, good_version_id: int | None) -> Wanted:
        good = None if good_version_id is None else self._version(good_version_id)
        return Wanted(self._version(version_id), good)

    def _version(self, version_id: int) -> ModelVersion:
        if version_id not in self._versions:
            ledger = self._process.ledger
            self._versions[version_id] = self._process.patiently(lambda: ledger.version(version_id))
        return self._versions[version_id]
