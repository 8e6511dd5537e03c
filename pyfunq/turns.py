"""In which order a worker looks at its queues: by lane, within one by turns; and no lane is passed over for ever."""

from kombu.utils.scheduling import priority_cycle

from pyfunq.lanes import line_of, own_of

PASSED_OVER = 10
"""After so many messages of lanes before it a lane is looked at first, until it has been taken from."""


class PriorityWithTurns(priority_cycle):  # type: ignore[misc]
    """kombu's `queue_order_strategy`: lanes in the order in which they were given, but for those whose turn it is."""

    def __init__(self, it: list[str] | None = None) -> None:
        super().__init__(it)
        self._passed_over: dict[str, int] = {}
        self._last_taken: dict[str, int] = {}
        self._taken = 0

    def consume(self, n: int) -> list[str]:
        queues: list[str] = super().consume(n)
        place = {lane: i for i, lane in enumerate(dict.fromkeys(map(_line, queues)))}

        def order(queue: str) -> tuple[bool, int, int]:
            waits = self._passed_over.get(_line(queue), 0) < PASSED_OVER
            return waits, place[_line(queue)], self._last_taken.get(queue, 0)

        return sorted(queues, key=order)

    def rotate(self, last_used: str) -> str:
        """Called with each message's queue."""
        self._taken += 1
        self._last_taken[last_used] = self._taken
        lanes = list(dict.fromkeys(map(_line, self.items)))
        line = _line(last_used)
        self._passed_over[line] = 0
        if line in lanes:
            for behind in lanes[lanes.index(line) + 1 :]:
                self._passed_over[behind] = self._passed_over.get(behind, 0) + 1
        return last_used


def _line(queue: str) -> str:
    """What waits its turn together: the queues of a lane, or the one before them."""
    if own_of(queue):
        return queue if queue.endswith(".first") else line_of(queue)
    lane, _, which = queue.partition(".")
    return queue if lane and not which.isdigit() and which else lane
