"""Events for Flower: in groups, also after a connection broke."""

from collections.abc import Callable
from typing import Any

import pytest

from worker import consumer
from worker.consumer import GroupingConsumer


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Hub:
    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], Any]]] = []

    def call_later(self, delay: float, callback: Callable[[], Any]) -> None:
        self.timers.append((delay, callback))


class Dispatcher:
    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(consumer, "time", clock)
    return clock


def connected(hub: Hub | None) -> GroupingConsumer:
    made = object.__new__(GroupingConsumer)
    made._sent_at, made.hub, made.event_dispatcher = 0.0, hub, Dispatcher()
    return made


def test_the_events_of_a_moment_are_sent_together(clock: Clock) -> None:
    hub = Hub()
    grouping = connected(hub)
    for _ in range(5):
        grouping.on_send_event_buffered()
    ((delay, send),) = hub.timers
    assert 0 < delay <= 0.2
    assert not grouping.event_dispatcher.flushed
    send()
    assert grouping.event_dispatcher.flushed == 1


def test_events_go_on_when_a_timer_was_lost_with_its_connection(clock: Clock) -> None:
    hub = Hub()
    grouping = connected(hub)
    grouping.on_send_event_buffered()
    hub.timers.clear()
    clock.now += 0.2
    grouping.on_send_event_buffered()
    assert len(hub.timers) == 1


def test_without_a_loop_nothing_is_buffered(clock: Clock) -> None:
    connected(None).on_send_event_buffered()
