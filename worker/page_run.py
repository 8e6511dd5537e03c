"""A message's page from its first micro-batch to its last: one is predicted, the next claimed, the last one written."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from uuid import UUID

from pyfunq.entries import ClaimedJob, Outcome
from pyfunq.errors import LedgerUnavailable
from pyfunq.fault_points import FaultPoint, reach
from worker.process import WorkerProcess
from worker.run_batch import Setback, endings_of, recorded_words, set_back

Claim = Future[list[ClaimedJob]]
Writing = Callable[[], list[str]]


def run_page(process: WorkerProcess, page_id: UUID, queue: str | None = None, *, early: bool = False) -> str:
    """Predicts what the page has and what may come along, until it is empty or others go first.

    `queue`: whose message this is. `early`: the page may be in the middle of its commit. Returns a line for operators.
    """
    reach(FaultPoint.BEFORE_CLAIM)
    words = PageRun(process, page_id, queue, early=early).run()
    return ", ".join(f"{n} {what}" for what, n in sorted(words.items())) or "its jobs went with another message"


class PageRun:
    """The main thread predicts; claims and results are the event loop's, one of each at a time."""

    def __init__(self, process: WorkerProcess, page_id: UUID, queue: str | None, *, early: bool) -> None:
        self._process = process
        self._page_id = page_id
        self._queue = queue
        self._early = early
        self._words: Counter[str] = Counter()
        self._writing: Writing | None = None
        self._ahead: Claim | None = None

    def run(self) -> Counter[str]:
        jobs, may_have_more = self._claimed(self._process.start_claim(self._page_id, early=self._early))
        try:
            while jobs:
                self._predict(jobs, may_have_more)
                if not may_have_more:
                    break
                if self._process.drain.begun or self._process.others_go_first(self._queue):
                    self._pass_on()
                    break
                jobs, may_have_more = self._claimed(self._ahead or self._process.start_claim(self._page_id))
        except BaseException:
            with suppress(LedgerUnavailable):
                self._give_back_ahead()
            raise
        finally:
            self._end_writing()
        return self._words

    def _claimed(self, claim: Claim) -> tuple[list[ClaimedJob], bool]:
        self._ahead = None
        return self._process.claimed(claim)

    def _predict(self, jobs: Sequence[ClaimedJob], may_have_more: bool) -> None:
        reach(FaultPoint.AFTER_CLAIM)
        if may_have_more and not self._process.drain.begun:
            self._ahead = self._process.start_claim(self._page_id)
        endings = endings_of(self._process, jobs)
        reach(FaultPoint.PREDICTING)
        self._end_writing()
        self._write([end for end in endings if isinstance(end, Outcome)])
        self._words.update(set_back(self._process, [end for end in endings if isinstance(end, Setback)]))

    def _write(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            recording = self._process.start_recording(outcomes)
            self._writing = lambda: recorded_words(outcomes, self._process.recorded(outcomes, recording))

    def _end_writing(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            self._words.update(writing())

    def _pass_on(self) -> None:
        reach(FaultPoint.DRAINING)
        self._give_back_ahead()
        self._process.pass_on(self._page_id)

    def _give_back_ahead(self) -> None:
        if self._ahead is not None:
            jobs, _ = self._claimed(self._ahead)
            if jobs:
                self._process.give_back(jobs)
