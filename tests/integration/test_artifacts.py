"""The model files of a host, shared by processes, from a real MLflow server behind a proxy that misbehaves."""

import gc
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from pyfunq.entries import ModelVersion
from pyfunq.errors import RegistryUnavailable
from tests.conftest import Servers
from tests.integration.artifact_holder import Holder
from tests.integration.mlflow_proxy import Proxy
from tests.programs import until
from worker.artifacts import ArtifactStore, size_of
from worker.loading import load

MANY = 1 << 40


@pytest.fixture(scope="module")
def size_bytes(versions: list[ModelVersion], servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Of each of the versions."""
    store = ArtifactStore(tmp_path_factory.mktemp("size"), servers.mlflow, max_bytes=MANY)
    with store.open(versions[0]) as files:
        assert files.size_bytes == size_of(files.path) > 0
        return files.size_bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def holder(root: Path, proxy: Proxy) -> Iterator[Callable[..., Holder]]:
    """Makes processes that share the directory."""
    made: list[Holder] = []

    def make(max_bytes: int = MANY) -> Holder:
        made.append(Holder(root, proxy.uri, max_bytes))
        return made[-1]

    yield make
    proxy.passes.set()
    for one in made:
        one.kill()


def kept(root: Path) -> list[str]:
    """The numbers of the versions on disk, and whatever else is there."""
    return sorted(p.name.split("-")[1] if p.name.startswith("shelf-") else p.name for p in root.iterdir())


def waits(holder: Holder) -> bool:
    """Whether the process has a download's manifest open."""
    return any("/.download-" in f.path for f in psutil.Process(holder.process.pid).open_files())


def test_processes_and_threads_that_want_a_version_at_once_download_it_once(
    root: Path, proxy: Proxy, versions: list[ModelVersion], size_bytes: int, holder: Callable[..., Holder]
) -> None:
    store = ArtifactStore(root, proxy.uri, max_bytes=MANY)
    others = [holder(), holder()]
    with proxy.held_up():
        for other in others:
            other.begin("open", versions[0])
        threads = ThreadPoolExecutor(2)
        here = [threads.submit(store.open, versions[0]) for _ in range(2)]
        until("one downloads and one waits", lambda: proxy.downloads and all(map(waits, others)))
    opened = [future.result() for future in here]
    assert {files.path for files in opened} == {Path(other.answer()) for other in others}
    assert proxy.downloads["MLmodel"] == 1
    assert set(proxy.downloads.values()) == {1}
    assert proxy.calls <= 4
    assert proxy.listings <= 3
    assert opened[0].size_bytes == size_of(opened[0].path) == size_bytes
    assert load(versions[0], opened[0].path).version == versions[0]
    assert len(list(root.iterdir())) == 1
    for files in opened:
        files.close()
        files.close()
    threads.shutdown()


def test_when_the_downloader_is_killed_the_next_one_goes_on(
    root: Path, proxy: Proxy, versions: list[ModelVersion], holder: Callable[..., Holder]
) -> None:
    first, second = holder(), holder()
    with proxy.held_up():
        first.begin("open", versions[0])
        until("the first downloads", lambda: proxy.downloads["MLmodel"] == 1)
        second.begin("open", versions[0])
        until("the second waits", lambda: waits(second))
        first.kill()
        until("the second downloads", lambda: proxy.downloads["MLmodel"] == 2)
    assert {"MLmodel", "python_model.pkl"} <= {f.name for f in Path(second.answer()).iterdir()}
    assert kept(root) == ["1"]


def test_a_start_removes_what_the_dead_left_and_nothing_of_the_living(
    root: Path, proxy: Proxy, versions: list[ModelVersion], holder: Callable[..., Holder], size_bytes: int
) -> None:
    living, dead, dropping = holder(), holder(), holder(max_bytes=size_bytes // 2)
    path = dropping.open(versions[2])
    dropping.begin("die while dropping", versions[2])
    dropping.process.join(10)
    assert not path.exists()
    with proxy.held_up():
        living.begin("open", versions[0])
        until("one downloads", lambda: proxy.downloads["MLmodel"] == 2)
        dead.begin("open", versions[1])
        until("two download", lambda: proxy.downloads["MLmodel"] == 3)
        dead.kill()
        (root / ".download-killed-before-it-had-a-manifest").mkdir()
        assert len([name for name in kept(root) if name.startswith(".download-")]) == 3
        assert len([name for name in kept(root) if name.startswith(".evicted-")]) == 1
        ArtifactStore(root, proxy.uri, max_bytes=MANY)
        (left,) = kept(root)
        assert left.startswith(".download-shelf-1-")
    living.answer()
    assert kept(root) == ["1"]


def test_those_who_wait_for_a_download_share_its_failure(
    root: Path, proxy: Proxy, versions: list[ModelVersion], holder: Callable[..., Holder]
) -> None:
    proxy.change_body = lambda name, body: body[: len(body) // 2]
    first, second = holder(), holder()
    with proxy.held_up():
        first.begin("open", versions[0])
        until("the first downloads", lambda: proxy.downloads["MLmodel"] == 1)
        second.begin("open", versions[0])
        until("the second waits", lambda: waits(second))
    with pytest.raises(RegistryUnavailable) as one:
        first.answer()
    with pytest.raises(RegistryUnavailable) as other:
        second.answer()
    assert str(one.value) == str(other.value)
    assert proxy.downloads["MLmodel"] == 1
    assert kept(root) == []


def test_an_interrupted_download_leaves_nothing(root: Path, proxy: Proxy, versions: list[ModelVersion]) -> None:
    class Stop(BaseException): ...

    def stop(*_: object) -> None:
        raise Stop

    def interrupt() -> None:
        until("it downloads", lambda: proxy.downloads)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    store = ArtifactStore(root, proxy.uri, max_bytes=MANY)
    before = signal.signal(signal.SIGUSR2, stop)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with proxy.held_up(), pytest.raises(Stop):
            store.open(versions[0])
        thread.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert kept(root) == []
    with store.open(versions[0]) as files:
        assert size_of(files.path) == files.size_bytes


def test_the_bound_holds_and_the_least_recently_used_go_first(
    root: Path, proxy: Proxy, versions: list[ModelVersion], size_bytes: int
) -> None:
    bound = 4 * size_bytes + size_bytes // 2
    store = ArtifactStore(root, proxy.uri, max_bytes=bound)

    def use(number: int) -> None:
        with store.open(versions[number - 1]):
            assert sum(size_of(place) for place in root.glob("*/files")) <= bound

    for number in range(1, 5):
        use(number)
    assert kept(root) == ["1", "2", "3", "4"]
    for number, after in [(1, "1234"), (5, "1345"), (3, "1345"), (6, "1356"), (1, "1356"), (7, "1367")]:
        use(number)
        assert kept(root) == list(after)
    for number in range(8, 13):
        use(number)
    assert kept(root) == ["10", "11", "12", "9"]
    assert proxy.downloads["MLmodel"] == 12


def test_room_is_made_before_a_download_begins(
    root: Path, proxy: Proxy, versions: list[ModelVersion], size_bytes: int
) -> None:
    store = ArtifactStore(root, proxy.uri, max_bytes=2 * size_bytes)
    for version in versions[:2]:
        store.open(version).close()
    seen: list[list[str]] = []
    proxy.change_body = lambda name, body: (seen.append(kept(root)), body)[1]
    store.open(versions[2]).close()
    assert {tuple(n for n in names if not n.startswith(".")) for names in seen} == {("2",)}


def test_what_another_process_has_open_is_never_dropped(
    root: Path, proxy: Proxy, versions: list[ModelVersion], size_bytes: int, holder: Callable[..., Holder]
) -> None:
    other = holder()
    path = other.open(versions[0])
    assert other.ask("close in a child", versions[0]) == 0, "a child's close is the child's alone"
    store = ArtifactStore(root, proxy.uri, max_bytes=2 * size_bytes)
    for version in versions[1:5]:
        store.open(version).close()
        assert size_of(path) == size_bytes
    assert kept(root) == ["1", "5"]
    child = other.ask("leave a child")
    try:
        other.close(versions[0])
        store.open(versions[5]).close()
        store.open(versions[6]).close()
        assert kept(root) == ["6", "7"], "a child that inherited it holds nothing"
    finally:
        psutil.Process(child).kill()
    other.open(versions[0])
    other.kill()
    for version in versions[1:3]:
        store.open(version).close()
    assert kept(root) == ["2", "3"], "the dead hold nothing"


def test_two_opens_of_one_process_count_as_two(
    root: Path, proxy: Proxy, versions: list[ModelVersion], size_bytes: int
) -> None:
    store = ArtifactStore(root, proxy.uri, max_bytes=size_bytes)
    one, two = store.open(versions[0]), store.open(versions[0])
    one.close()
    store.open(versions[1]).close()
    assert kept(root) == ["1"]
    two.close()
    store.open(versions[1]).close()
    assert kept(root) == ["2"]


def test_a_version_above_the_bound_stays_while_it_is_open(
    root: Path, proxy: Proxy, versions: list[ModelVersion], size_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = ArtifactStore(root, proxy.uri, max_bytes=size_bytes // 2)
    with caplog.at_level(logging.WARNING), store.open(versions[0]) as files:
        assert size_of(files.path) == size_bytes
        assert f"shelf/1 the model files in use take {size_bytes - size_bytes // 2} bytes more" in caplog.text
        assert f"PYFUNQ_MODEL_DISK_BYTES ({size_bytes // 2})" in caplog.text
        assert kept(root) == ["1"]
    assert kept(root) == []


def test_processes_that_drop_each_others_versions_always_have_theirs_whole(
    root: Path, versions: list[ModelVersion], size_bytes: int, holder: Callable[..., Holder]
) -> None:
    others = [holder(max_bytes=size_bytes) for _ in range(3)]
    uses = 15
    for seed, other in enumerate(others):
        other.begin("use in turns", random.Random(seed).choices(versions[:3], k=uses))  # noqa: S311
    assert [other.answer(120) for other in others] == [uses] * 3
    assert len(kept(root)) == 1


def test_two_hundred_opens_leave_nothing_behind(
    root: Path, servers: Servers, versions: list[ModelVersion], size_bytes: int, tmp_path: Path, monkeypatch: Any
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store = ArtifactStore(root, servers.mlflow, max_bytes=4 * size_bytes)
    process, order = psutil.Process(), random.Random(5)  # noqa: S311
    gc.collect()
    descriptors, threads = 0, threading.active_count()
    for n in range(200):
        with store.open(order.choice(versions[:6])) as files:
            assert (files.path / "MLmodel").is_file()
        if n == 20:  # MLflow's own connections are there by now
            descriptors = process.num_fds()
    gc.collect()
    until("MLflow's threads have ended", lambda: threading.active_count() <= threads)
    assert process.num_fds() <= descriptors
    assert len(kept(root)) == 4
    assert not list(temporary.iterdir())
    assert sum(1 for _ in root.rglob("manifest.json")) == 4


def test_what_is_there_opens_with_mlflow_away_and_after_a_restart(
    root: Path, proxy: Proxy, versions: list[ModelVersion], holder: Callable[..., Holder], size_bytes: int
) -> None:
    ArtifactStore(root, proxy.uri, max_bytes=MANY).open(versions[0]).close()
    proxy.is_away = True
    proxy.forget()
    again = ArtifactStore(root, proxy.uri, max_bytes=MANY)
    with again.open(versions[0]) as files:
        assert files.size_bytes == size_bytes
        assert holder().open(versions[0]) == files.path
        assert load(versions[0], files.path).metadata
    assert not proxy.downloads
    assert not proxy.listings
    with pytest.raises(RegistryUnavailable):
        again.open(versions[1])
    assert kept(root) == ["1"]


def test_files_that_became_shorter_on_this_host_are_downloaded_again(
    root: Path, proxy: Proxy, versions: list[ModelVersion], caplog: pytest.LogCaptureFixture
) -> None:
    store = ArtifactStore(root, proxy.uri, max_bytes=MANY)
    with store.open(versions[0]) as files:
        os.truncate(files.path / "python_model.pkl", 0)
        with pytest.raises(RegistryUnavailable, match="were damaged on this host, and are in use"):
            store.open(versions[0])
    with caplog.at_level(logging.WARNING), store.open(versions[0]) as files:
        assert load(versions[0], files.path).metadata
    assert "the files of shelf/1 were damaged on this host" in caplog.text
    shutil.rmtree(root / next(iter(root.iterdir())) / "files")
    with store.open(versions[0]) as files:
        assert load(versions[0], files.path).metadata
    assert proxy.downloads["MLmodel"] == 3


_ON_A_SMALL_DISK = """
import json, sys
from pathlib import Path
from pyfunq.entries import ModelVersion
from pyfunq.errors import RegistryUnavailable
from worker.artifacts import ArtifactStore
disk, uri, version = Path(sys.argv[1]), sys.argv[2], ModelVersion(**json.loads(sys.argv[3]))
store = ArtifactStore(disk / "models", uri, max_bytes=1 << 40)
try:
    store.open(version)
except RegistryUnavailable as exc:
    print(exc, list((disk / "models").iterdir()))
"""


@pytest.mark.parametrize(("pages", "says"), [(1, "free: its disk is full []"), (5, "(this host's disk is full) []")])
def test_a_full_disk_is_said_and_nothing_half_written_stays(
    tmp_path: Path, servers: Servers, versions: list[ModelVersion], pages: int, says: str
) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk of their own")
    mount = f'mount -t tmpfs -o size={pages * 4}k,nr_inodes=100 tmpfs "$0" && exec "$@"'
    program = [sys.executable, "-c", _ON_A_SMALL_DISK, str(tmp_path), servers.mlflow, json.dumps(asdict(versions[0]))]
    ran = subprocess.run(
        [*alone, "sh", "-c", mount, str(tmp_path), *program], capture_output=True, text=True, timeout=90
    )
    assert ran.stdout.strip().endswith(says), ran.stdout + ran.stderr
