"""The model cache with real models: bounds, one load for all, failures remembered."""

import asyncio
import threading
from typing import Any
from uuid import UUID

import pytest

import worker.loading
from pyfunq.client import AsyncClient
from pyfunq.errors import JobFailed
from pyfunq.ledger import Ledger
from pyfunq.model_uri import parse_model_uri
from pyfunq.settings import Settings
from tests.integration.conftest import SETOSA, Work, split
from worker.process import WorkerProcess


async def test_a_broken_model_fails_its_jobs_without_being_loaded_again_and_again(
    client: AsyncClient, process: WorkerProcess, work: Work, iris_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    loads = []
    real = worker.loading.mlflow.pyfunc.load_model

    def load_model(path: str, **options: Any) -> Any:
        loads.append(path)
        (next(iter(__import__("pathlib").Path(path).glob("MLmodel")))).write_text(
            "flavors: {python_function: {loader_module: not_there}}\nmodel_uuid: x\n"
        )
        return real(path, **options)

    monkeypatch.setattr(worker.loading.mlflow.pyfunc, "load_model", load_model)
    for _ in range(3):
        job = await client.submit("models:/iris/2", split(SETOSA))
        await work.all()
        with pytest.raises(JobFailed, match="needs the module 'not_there', which is not installed here"):
            await client.result(job)
    assert len(loads) == 1


async def test_the_cache_keeps_its_bounds_and_never_drops_what_is_in_use(
    settings: Settings, ledger: Ledger, iris_model: str, moody_model: str
) -> None:

    process = WorkerProcess(settings.model_copy(update={"model_cache_count": 1}))
    versions = {}
    for uri in ("models:/iris/1", "models:/iris/2", moody_model):
        found = await asyncio.to_thread(process.registry.resolve, parse_model_uri(uri))
        versions[uri] = found.version
    with process.models.use(versions["models:/iris/1"]) as held:
        with process.models.use(versions["models:/iris/2"]):
            assert len(process.models.versions()) == 2, "both are in use"
        assert process.models.versions() == [versions["models:/iris/1"]]
        with process.models.use(versions["models:/iris/1"]) as again:
            assert again is held
    with process.models.use(versions[moody_model]):
        assert process.models.versions() == [versions[moody_model]]
    process.close()


async def test_a_version_is_loaded_once_for_all_who_wait_for_it(
    settings: Settings, process: WorkerProcess, iris_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    loads = []
    real = worker.loading.load

    def counted(*args: Any) -> Any:
        loads.append(threading.get_ident())
        return real(*args)

    monkeypatch.setattr(worker.loading, "load", counted)
    version = (await asyncio.to_thread(process.registry.resolve, parse_model_uri("models:/iris/1"))).version

    def use() -> UUID:
        with process.models.use(version) as model:
            return id(model)

    assert len(set(await asyncio.gather(*(asyncio.to_thread(use) for _ in range(8))))) == 1
    assert len(loads) == 1
    assert not list((settings.home / "models").glob(".download-*"))
