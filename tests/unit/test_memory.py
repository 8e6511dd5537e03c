"""Memory: what loads are charged with."""

import threading

import pytest

from worker.memory import Growth, cache_share, memory_limit, own_memory, trim

MIB = 2**20


def test_a_load_is_charged_with_what_it_takes_and_at_least_its_files() -> None:
    growth = Growth()
    with growth.during(1000) as large:
        kept = bytearray(b"x") * (64 * MIB)
    with growth.during(7 * MIB) as none:
        pass
    assert 60 * MIB < large.bytes < 80 * MIB
    assert none.bytes == 7 * MIB
    assert len(kept) == 64 * MIB


def test_loads_at_the_same_time_share_by_their_files() -> None:
    growth, kept = Growth(), []
    both, done = threading.Barrier(2, timeout=10), threading.Barrier(2, timeout=10)
    sizes: dict[int, int] = {}

    def load(files: int, memory: int) -> None:
        with growth.during(files) as measured:
            both.wait()
            kept.append(bytearray(b"x") * memory)
            done.wait()
        sizes[files] = measured.bytes

    threads = [threading.Thread(target=load, args=a) for a in ((1 * MIB, 20 * MIB), (3 * MIB, 60 * MIB))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sizes.values()) == pytest.approx(80 * MIB, rel=0.15)
    assert sizes[3 * MIB] == pytest.approx(3 * sizes[1 * MIB], rel=0.2)


def test_what_is_given_back_is_not_hidden_from_the_next_measurement() -> None:
    some = [bytes(1000) for _ in range(50_000)]
    before = own_memory()
    del some
    trim()
    assert own_memory() < before - 30 * MIB


def test_processes_share_half_of_the_memory() -> None:
    assert cache_share(2) == pytest.approx(memory_limit() / 4, abs=1)
