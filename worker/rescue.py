"""Rescue: puts back the jobs of processes that are gone, publishes what lost its message, ends what is overdue."""

import logging
import socket
import time
from dataclasses import dataclass
from uuid import UUID

from redis import Redis

from pyfunq.entries import Page
from pyfunq.ids import new_id, oldest_id_at
from pyfunq.job import JobStatus, Lane
from pyfunq.lanes import first_queue, line, queues_of
from pyfunq.local import identity
from pyfunq.publishing import Publisher
from pyfunq.queue import oldest_waiting_page
from worker import metrics
from worker.process import WorkerProcess

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rescued:
    put_back: int
    dead: int
    expired: int
    published: int

    def __str__(self) -> str:
        return f"{self.put_back} put back, {self.dead} dead, {self.expired} expired, {self.published} published again"


def rescue(process: WorkerProcess, redis: Redis, publisher: Publisher) -> Rescued:
    """Safe to run in several processes at once: every step takes rows that the others skip."""
    put_back, dead = rescue_crashed(process, publisher)
    expired = process.run(process.ledger.expire())
    process.run(process.ledger.drop_old_keys(older_than_seconds=process.settings.idempotency_seconds))
    process.run(process.ledger.prune_models())
    process.run(process.ledger.prune_metrics())
    pages = due_pages(process)
    pages += lost_pages(process, redis, first=True) + lost_pages(process, redis)
    if pages:
        publisher.publish_now(pages)
    done = Rescued(put_back, dead, len(expired), sum(page.jobs for page in pages))
    metrics.rescued(expired=done.expired, published=done.published)
    if any((done.put_back, done.dead, done.expired, done.published)):
        log.warning("rescue: %s", done)
    return done


def rescue_crashed(process: WorkerProcess, publisher: Publisher) -> tuple[int, int]:
    """Puts back, and publishes at once, the jobs of processes that are gone; how many, and how many are dead now."""
    silence = process.heartbeat.silence_of_the_dead(process.settings.stale_seconds)
    crashed = process.run(process.ledger.rescue_crashed(silence))
    put_back = [end.page_id for end in crashed.values() if end.status is JobStatus.QUEUED]
    if put_back:
        publisher.publish_now(process.run(process.ledger.repage(put_back, [new_id() for _ in put_back])))
    metrics.rescued(put_back=len(put_back), dead=len(crashed) - len(put_back))
    return len(put_back), len(crashed) - len(put_back)


def ended_siblings(process: WorkerProcess) -> list[UUID]:
    """Notes which worker processes of this host ended without saying so: nobody need wait for their heartbeats."""
    rows = process.run(process.ledger.processes_of_host(socket.gethostname()))
    ended = [worker_id for worker_id, pid, start in rows if not identity.alive(pid, start)]
    for worker_id in ended:
        process.run(process.ledger.stop_beating(worker_id))
    return ended


def due_pages(process: WorkerProcess) -> list[Page]:
    """Jobs that were to wait until now, on new pages."""
    due = process.run(process.ledger.due_pages())
    return process.run(process.ledger.repage(due, [new_id() for _ in due])) if due else []


def lost_pages(process: WorkerProcess, redis: Redis, *, first: bool = False) -> list[Page]:
    """Pages, under new ids, whose messages are gone.

    A queue (of a lane, or the one before it) is first in, first out and ids grow with time. So what waits in the
    ledger and is older than the oldest message of its queue has lost its message, or a worker holds that and has no
    process free for it; then a second message, which finds nothing to do, is the price. (Redis cannot say which it
    is: a killed worker's messages look as if they were held.) A waiting backlog is younger than its oldest message.
    Messages in a queue that is no model's own any more do not count: nobody may take them; `repage` moves the jobs.
    """
    grace = process.settings.publish_grace_seconds
    boundaries = {}
    for waited_in, is_in_use in _lines(process).items():
        for queue in queues_of(waited_in):
            oldest = oldest_waiting_page(redis, first_queue(queue) if first else queue) if is_in_use else None
            seconds = time.time() if oldest is None else min(time.time(), (oldest.int >> 80) / 1000)
            boundaries[queue] = oldest_id_at(seconds - grace)
    lost = process.run(process.ledger.pages_without_message(boundaries, first=first))
    if not lost:
        return []
    return process.run(process.ledger.repage(lost, [new_id() for _ in lost]))


def _lines(process: WorkerProcess) -> dict[str, bool]:
    """Where jobs may wait, and whether anybody is to take them from there."""
    own_queues = process.run(process.ledger.own_queues())
    lines = {line(lane, own): is_in_use for own, is_in_use in own_queues.items() for lane in Lane}
    return {line(lane): True for lane in Lane} | lines
