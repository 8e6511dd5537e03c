"""The registry watch and resolution, on a real MLflow server behind a proxy that counts calls and can fail."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from mlflow import MlflowClient
from redis import Redis
from sklearn.linear_model import LinearRegression

from pyfunq.client import AsyncClient
from pyfunq.entries import ModelTags
from pyfunq.errors import JobFailed, ModelNotFound, QueueUnavailable, RegistryUnavailable
from pyfunq.job import JobStatus
from pyfunq.ledger import Ledger
from pyfunq.model_uri import parse_model_uri
from pyfunq.queue import CONTROL_QUEUE, TASK_REGISTRY_WATCH, make_app, request_refresh
from pyfunq.settings import Settings
from tests.conftest import RegisterModel, Servers
from tests.integration.conftest import Work
from tests.integration.registries import DENIED, EMPTY, LOGIN, UNAVAILABLE, Answer, Front, Shelf, Watching
from worker import upkeep
from worker.process import WorkerProcess
from worker.registry import Registry
from worker.registry_watch import Findings, look, write
from worker.tasks import register as register_tasks


@pytest.fixture
def front(servers: Servers) -> Iterator[Front]:
    with Front(servers.mlflow) as front:
        thread = threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield front
        front.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def shelf(servers: Servers) -> Shelf:
    return Shelf(servers.mlflow)


@pytest.fixture
def watching(ledger: Ledger, front: Front) -> Watching:
    return Watching(ledger, Registry(front.url))


# What a cycle costs.


async def test_a_cycle_is_one_call_for_all_models_while_nothing_changes(
    watching: Watching, front: Front, shelf: Shelf
) -> None:
    names = [shelf.model(3) for _ in range(12)]
    for name in names:
        shelf.client.set_registered_model_alias(name, "old", "1")
        shelf.stage(name, "2", "Production")
    await watching.use(*(f"models:/{name}{end}" for name in names for end in ("@old", "/Production", "/latest", "/1")))
    assert not (await watching.look()).changed
    front.asked()
    for _ in range(3):
        assert len((await watching.look()).same) == 48
    assert front.asked() == ["registered-models/search"] * 3
    shelf.client.set_registered_model_alias(names[0], "old", "3")
    assert await watching.changes() == {f"models:/{names[0]}@old": "3"}
    assert front.asked()[0] == "registered-models/search"
    assert not await watching.changes()
    assert front.asked() == ["registered-models/search"]


async def test_without_models_in_use_nobody_is_asked(watching: Watching, front: Front) -> None:
    assert await watching.look() == Findings()
    assert front.asked() == []


async def test_a_filter_is_only_cut_where_it_is_too_long(watching: Watching, front: Front, shelf: Shelf) -> None:
    names = [shelf.model() for _ in range(3)]
    absent = [f"absent-{n}-{'x' * 200}" for n in range(20)]
    front.longest_line = 3_000
    found = await asyncio.to_thread(watching.registry.models, [*names, *absent])
    assert {name for name, model in found.items() if model} == set(names)
    assert set(found) == {*names, *absent}
    cut = front.asked().count("registered-models/search")
    assert cut > 2
    await asyncio.to_thread(watching.registry.models, [*names, *absent])
    again = front.asked().count("registered-models/search")
    assert 2 <= again < cut, "the limit is remembered"
    front.longest_line = 100_000
    await asyncio.to_thread(Registry(front.url).models, [*names, *absent])
    assert front.asked().count("registered-models/search") == 1


async def test_more_models_than_a_page_holds(watching: Watching, front: Front, shelf: Shelf) -> None:
    names = [shelf.model() for _ in range(2)]
    front.fail = lambda path: DENIED if "/get" in path else None
    found = await asyncio.to_thread(watching.registry.models, [*(f"{n:04}" for n in range(1100)), *names])
    assert set(found) == set(names)
    assert front.asked().count("registered-models/search") == 2


async def test_names_with_quotes_are_followed(watching: Watching, front: Front, shelf: Shelf) -> None:
    names = ["it's", 'so "called"', "`it` is"]
    for name in names:
        shelf.client.create_registered_model(name)
        shelf.version(name)
    await watching.use(*(f"models:/{name}/latest" for name in names))
    await watching.look()
    front.asked()
    assert len((await watching.look()).same) == 3
    assert front.asked() == ["registered-models/search"]


# Which version.


async def test_a_stage_means_its_highest_version_not_the_last_to_come(watching: Watching, shelf: Shelf) -> None:
    name = shelf.model(3)
    shelf.stage(name, "3", "Staging")
    shelf.stage(name, "1", "Staging")
    await watching.use(f"models:/{name}/Staging", f"models:/{name}/latest")
    assert (await watching.resolution(f"models:/{name}/Staging")).version.version == "3"
    shelf.client.delete_model_version(name, "3")
    assert await watching.changes() == {f"models:/{name}/Staging": "1", f"models:/{name}/latest": "2"}


async def test_a_model_that_was_made_again_is_another(watching: Watching, shelf: Shelf) -> None:
    name = shelf.model(2)
    shelf.client.set_registered_model_alias(name, "a", "1")
    uris = [f"models:/{name}@a", f"models:/{name}/1"]
    await watching.use(*uris)
    before = [await watching.resolution(uri) for uri in uris]
    assert not await watching.changes()
    shelf.client.delete_registered_model(name)
    shelf.client.create_registered_model(name)
    for _ in range(2):
        shelf.version(name)
    shelf.client.set_registered_model_alias(name, "a", "1")
    assert await watching.changes() == dict.fromkeys(uris, "1")
    after = [await watching.resolution(uri) for uri in uris]
    assert not {r.version.identity for r in before} & {r.version.identity for r in after}
    assert not await watching.changes()


async def test_a_name_that_was_freed_for_an_older_model_means_that(watching: Watching, shelf: Shelf) -> None:
    other, name = shelf.model(2), shelf.model(2)
    for model in (other, name):
        shelf.client.set_registered_model_alias(model, "a", "1")
    uris = [f"models:/{name}@a", f"models:/{name}/1"]
    await watching.use(*uris)
    sources = {(await watching.resolution(uri)).version.source for uri in uris}
    assert not await watching.changes()
    shelf.client.rename_registered_model(name, f"{name}-gone")
    shelf.client.rename_registered_model(other, name)
    assert await watching.changes() == dict.fromkeys(uris, "1")
    assert not sources & {(await watching.resolution(uri)).version.source for uri in uris}


async def test_a_version_that_was_deleted_is_forgotten(watching: Watching, shelf: Shelf) -> None:
    name = shelf.model(3)
    shelf.client.set_registered_model_alias(name, "a", "1")
    await watching.use(f"models:/{name}/1", f"models:/{name}/2", f"models:/{name}@a")
    assert not await watching.changes()
    shelf.client.delete_model_version(name, "1")
    assert await watching.changes() == {f"models:/{name}/1": None, f"models:/{name}@a": None}
    assert [r.model_uri for r in await watching.ledger.resolutions()] == [f"models:/{name}/2"]
    shelf.client.delete_registered_model(name)
    assert await watching.changes() == {f"models:/{name}/2": None}


async def test_a_deleted_version_is_served_no_more_although_it_is_in_memory(
    client: AsyncClient, work: Work, process: WorkerProcess, register: RegisterModel, servers: Servers
) -> None:
    register("withdrawn", LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), None)
    job = await client.submit("models:/withdrawn/1", {"inputs": [[3.0]]})
    await work.all()
    assert (await client.get(job)).status is JobStatus.SUCCEEDED
    MlflowClient(servers.mlflow).delete_model_version("withdrawn", "1")
    assert await asyncio.to_thread(upkeep.registry_watch, process) == "0 same, 1 changed"
    job = await client.submit("models:/withdrawn/1", {"inputs": [[3.0]]})
    await work.all()
    with pytest.raises(JobFailed, match="model 'withdrawn' has no version 1; its versions: none"):
        await client.result(job)


async def test_the_tags_of_a_model_are_followed_for_its_exact_versions_too(watching: Watching, shelf: Shelf) -> None:
    name = shelf.model(2)
    uris = [f"models:/{name}/1", f"models:/{name}/latest"]
    await watching.use(*uris)
    for tag, value, expected in (
        ("pyfunq.timeout", "3", ModelTags(timeout_seconds=3.0)),
        ("pyfunq.queue", "model.gpu-1.a_b", ModelTags(timeout_seconds=3.0, queue="model.gpu-1.a_b")),
        ("pyfunq.queue", "interactive", ModelTags(timeout_seconds=3.0)),
        ("pyfunq.timeout", "never", ModelTags()),
    ):
        shelf.client.set_registered_model_tag(name, tag, value)
        assert set(await watching.changes()) == set(uris)
        assert [(await watching.resolution(uri)).tags for uri in uris] == [expected] * 2
        assert not await watching.changes()


async def test_a_tag_that_cannot_be_used_is_said_once(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    name = shelf.model()
    shelf.client.set_registered_model_tag(name, "pyfunq.queue", "gpu")
    registry = Registry(shelf.client.tracking_uri)
    for _ in range(2):
        assert registry.resolve(parse_model_uri(f"models:/{name}/1")).means(confidence=False).queue is None
    (said,) = [r.getMessage() for r in caplog.records if name in r.getMessage()]
    assert said.startswith(f"model {name!r}: its tag pyfunq.queue is no queue's name")


async def test_who_asked_the_registry_later_has_the_last_word(watching: Watching, shelf: Shelf) -> None:
    name = shelf.model(2)
    uri = f"models:/{name}@a"
    shelf.client.set_registered_model_alias(name, "a", "1")
    await watching.use(uri)
    ledger = watching.ledger

    async def begin() -> tuple[datetime, Findings]:
        asked_at, known = await ledger.clock(), await ledger.resolutions()
        return asked_at, await asyncio.to_thread(look, watching.registry, known, False)

    shelf.client.set_registered_model_alias(name, "a", "2")
    old_at, old = await begin()
    shelf.client.set_registered_model_alias(name, "a", "1")
    new_at, new = await begin()
    await write(ledger, new, new_at)
    await write(ledger, old, old_at)
    assert (await watching.resolution(uri)).version.version == "1"
    shelf.client.delete_registered_model_alias(name, "a")
    old_at, old = await begin()
    shelf.client.set_registered_model_alias(name, "a", "2")
    new_at, new = await begin()
    await write(ledger, new, new_at)
    await write(ledger, old, old_at)
    assert (await watching.resolution(uri)).version.version == "2"


# What has no registered model.


async def test_logged_models_and_runs_are_looked_at_now_and_then(
    watching: Watching, front: Front, servers: Servers
) -> None:
    client = MlflowClient(servers.mlflow)
    experiment = client.create_experiment("no names")
    logged = [client.create_logged_model(experiment) for _ in range(2)]
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    uris = [*(f"models:/{m.model_id}" for m in logged), *(f"runs:/{run}/model" for run in runs)]
    await watching.use(*uris)
    front.asked()
    assert await watching.look() == Findings()
    assert front.asked() == [], "they were looked at just now"
    client.delete_logged_model(logged[0].model_id)
    client.delete_run(runs[0])
    later = [
        replace(r, checked_at=datetime.now(UTC) - timedelta(minutes=2)) for r in await watching.ledger.resolutions()
    ]
    first = await asyncio.to_thread(look, watching.registry, later, False)
    assert len(front.asked()) == 3, "not all at once"
    found = {c.model_uri: c.new for c in first.changed} | first.same
    rest = [r for r in later if r.model_uri not in found]
    second = await asyncio.to_thread(look, watching.registry, rest, False)
    found |= {c.model_uri: c.new for c in second.changed} | second.same
    assert {c.model_uri for c in (*first.changed, *second.changed)} == {uris[0], uris[2]}
    assert set(found) == set(uris)


# MLflow is away.


@pytest.mark.parametrize("answer", [UNAVAILABLE, LOGIN, DENIED, EMPTY])
async def test_an_answer_that_is_none_deletes_nothing(
    watching: Watching, front: Front, shelf: Shelf, answer: Answer
) -> None:
    name = shelf.model()
    await watching.use(f"models:/{name}/1")
    before = await watching.resolution(f"models:/{name}/1")
    front.fail = lambda path: answer
    try:
        assert (await watching.look()).unanswered == [f"models:/{name}/1"]
    except RegistryUnavailable:
        assert answer is not EMPTY
    assert await watching.resolution(f"models:/{name}/1") == before


async def test_a_model_that_is_hidden_from_us_stays_and_holds_up_no_other(
    watching: Watching, front: Front, shelf: Shelf
) -> None:
    """MLflow's basic-auth leaves what we may not read out of the answer."""
    hidden, other = shelf.model(), shelf.model()
    await watching.use(f"models:/{hidden}/latest", f"models:/{other}/latest")
    shelf.client.rename_registered_model(hidden, f"{hidden}-away")
    shelf.version(other)
    front.fail = lambda path: DENIED if "registered-models/get" in path else None
    findings = await watching.look()
    assert findings.unanswered == [f"models:/{hidden}/latest"]
    assert [c.model_uri for c in findings.changed] == [f"models:/{other}/latest"]
    front.fail = lambda path: None
    assert await watching.changes() == {f"models:/{hidden}/latest": None}


async def test_while_mlflow_is_away_resolutions_grow_old_and_one_line_a_minute_says_why(
    settings: Settings, ledger: Ledger, front: Front, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"models:/{shelf.model()}/latest"
    process = WorkerProcess(settings.model_copy(update={"mlflow_tracking_uri": front.url}))
    try:
        await Watching(ledger, process.registry).use(uri)
        first = await ledger.resolution(uri)
        front.fail = lambda path: LOGIN
        for _ in range(3):
            assert await asyncio.to_thread(upkeep.registry_watch, process) == "registry unavailable"
        assert await ledger.resolution(uri) == first, "confirmed no more"
        said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "worker.upkeep"]
        assert said == ["registry watch: the MLflow server answered HTTP 401; the last resolutions stay"]
        front.fail = lambda path: None
        assert await asyncio.to_thread(upkeep.registry_watch, process) == "1 same, 0 changed"
        last = await ledger.resolution(uri)
        assert first is not None
        assert last is not None
        assert first.checked_at is not None
        assert last.checked_at is not None
        assert last.checked_at > first.checked_at
        assert last.resolved_at == first.resolved_at
    finally:
        process.close()


# Fallback.


async def test_where_nothing_has_the_stage_the_error_says_what_there_is(watching: Watching, shelf: Shelf) -> None:
    name = shelf.model(3)
    shelf.stage(name, "3", "Staging")
    shelf.stage(name, "2", "Archived")
    shelf.client.set_registered_model_alias(name, "first", "1")
    has = "its versions: 3 (Staging), 2 (Archived), 1 (None)"
    for uri, says in (
        (f"models:/{name}/Production", f"model {name!r} has no version in stage Production; {has}"),
        (f"models:/{name}@champion", f"model {name!r} has no alias 'champion'; its aliases: first (1); {has}"),
        (f"models:/{name}/9", f"model {name!r} has no version 9; {has}"),
    ):
        with pytest.raises(ModelNotFound) as caught:
            await asyncio.to_thread(watching.registry.resolve, parse_model_uri(uri))
        assert caught.value.message == says


async def test_of_many_versions_the_error_names_the_newest(shelf: Shelf) -> None:
    name = shelf.model(25)
    with pytest.raises(ModelNotFound, match=r"its versions: 25 \(None\), .*, 6 \(None\), \.\.\.$"):
        Registry(shelf.client.tracking_uri).resolve(parse_model_uri(f"models:/{name}/Production"))
    empty = shelf.model(0)
    for uri, says in ((f"models:/{empty}/latest", "has no version yet"), (f"models:/{empty}@a", "its aliases: none;")):
        with pytest.raises(ModelNotFound, match=says):
            Registry(shelf.client.tracking_uri, fallback_latest=True).resolve(parse_model_uri(uri))


async def test_with_fallback_a_stage_means_the_latest_version_until_one_has_it(
    ledger: Ledger, front: Front, shelf: Shelf
) -> None:
    name = shelf.model(2)
    watching = Watching(ledger, Registry(front.url, fallback_latest=True))
    stage, alias = f"models:/{name}/Production", f"models:/{name}@champion"
    await watching.use(stage, alias)
    assert [(await watching.resolution(uri)).version.version for uri in (stage, alias)] == ["2", "2"]
    shelf.version(name)
    assert await watching.changes() == {stage: "3", alias: "3"}
    shelf.stage(name, "1", "Production")
    assert await watching.changes() == {stage: "1"}
    shelf.client.set_registered_model_alias(name, "champion", "2")
    assert await watching.changes() == {alias: "2"}
    shelf.client.delete_registered_model_alias(name, "champion")
    assert await watching.changes() == {alias: "3"}
    with pytest.raises(ModelNotFound):
        watching.registry.resolve(parse_model_uri(f"models:/{name}/9"))


async def test_the_setting_reaches_the_worker(settings: Settings, shelf: Shelf) -> None:
    uri = parse_model_uri(f"models:/{shelf.model()}/Production")
    process = WorkerProcess(settings.model_copy(update={"fallback_latest": True}))
    try:
        assert process.registry.resolve(uri).version.version == "1"
    finally:
        process.close()


# When it runs.


def watch_task(process: WorkerProcess) -> Any:
    app = Celery("test", set_as_current=False)
    register_tasks(app, lambda: process)
    return app.tasks[TASK_REGISTRY_WATCH]


async def test_a_refresh_runs_at_once_although_another_ran_just_now(
    process: WorkerProcess, settings: Settings, redis_url: str
) -> None:
    task = watch_task(process)
    assert await asyncio.to_thread(task) == "0 same, 0 changed"
    assert await asyncio.to_thread(task) == "another process did it just now"
    await asyncio.to_thread(request_refresh, settings)
    with Redis.from_url(redis_url) as redis, make_app(settings) as app, app.connection() as connection:
        assert redis.llen(CONTROL_QUEUE) == 1
        message = connection.SimpleQueue(CONTROL_QUEUE).get(timeout=5)
    assert message.headers["task"] == TASK_REGISTRY_WATCH
    assert message.headers["expires"]
    assert await asyncio.to_thread(task, **message.payload[1]) == "0 same, 0 changed"


def test_a_refresh_without_redis_says_so(settings: Settings) -> None:
    with pytest.raises(QueueUnavailable):
        request_refresh(settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"}))


async def test_while_every_process_is_busy_a_promotion_is_noticed_all_the_same(
    settings: Settings, ledger: Ledger, process: WorkerProcess, shelf: Shelf, eventually: Callable[..., Any]
) -> None:
    """Nobody runs the beat's tasks, and two processes stand in."""
    name = shelf.model(2)
    uri = f"models:/{name}@a"
    shelf.client.set_registered_model_alias(name, "a", "1")
    await Watching(ledger, process.registry).use(uri)
    quick = settings.model_copy(update={"registry_watch_seconds": 0.5})
    other = WorkerProcess(quick)
    process.settings = quick
    await ledger.begin_upkeep(TASK_REGISTRY_WATCH, at_most_every_seconds=0.1)
    stand_ins = [upkeep.StandIn(process), upkeep.StandIn(other)]

    async def version() -> str:
        found = await ledger.resolution(uri)
        return found.version.version if found else ""

    async def means(number: str) -> bool:
        return await version() == number

    try:
        for number in ("2", "1", "2"):
            shelf.client.set_registered_model_alias(name, "a", number)
            # 0.5 s + 1 s, and what a busy machine takes; without a stand-in it would be never.
            await eventually(f"version {number}", lambda number=number: means(number), 20)
    finally:
        for stand_in in stand_ins:
            stand_in.close()
        other.close()


async def test_when_upkeep_is_due_is_read_without_beginning_it(ledger: Ledger) -> None:
    assert await ledger.upkeep_due("x", at_most_every_seconds=5) == 0
    await ledger.begin_upkeep("x", at_most_every_seconds=5)
    assert 4 < await ledger.upkeep_due("x", at_most_every_seconds=5) <= 5
    assert await ledger.upkeep_due("x", at_most_every_seconds=0) == 0
    assert not await ledger.begin_upkeep("x", at_most_every_seconds=5)
