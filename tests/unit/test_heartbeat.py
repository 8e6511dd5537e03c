"""Whom a process that was cut off itself takes for dead."""

from worker.heartbeat import Heartbeat


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_process_that_is_heard_waits_stale_seconds_for_the_others() -> None:
    clock = Clock()
    heartbeat = Heartbeat(5, clock)
    for _ in range(10):
        clock.now += 9
        heartbeat.arrived()
        assert heartbeat.silence_of_the_dead(20) == 20


def test_one_that_was_cut_off_gives_the_others_as_long_to_come_back() -> None:
    clock = Clock()
    heartbeat = Heartbeat(5, clock)
    clock.now += 60
    assert heartbeat.silence_of_the_dead(20) == 80, "still cut off"
    heartbeat.arrived()
    assert heartbeat.silence_of_the_dead(20) == 80
    for _ in range(4):
        clock.now += 4.9
        heartbeat.arrived()
        assert heartbeat.silence_of_the_dead(20) == 80
    clock.now += 0.5
    heartbeat.arrived()
    assert heartbeat.silence_of_the_dead(20) == 20, "whoever is not heard by now is dead"
