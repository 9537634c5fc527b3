"""Many threads, one queue: what one of them does is not told to another before it is as safe as it must be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, OnDuplicate, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_core.protocols import Accepted
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing import SimFiles
from daskqueue_storage.writer import LogWriter

CLIENT = 7


@pytest.fixture
def queue() -> DurableQueue:
    """With one message that is leased, and one that is ready."""
    made = DurableQueue("/queue", files=SimFiles(), segment_bytes=1 << 26, result_ttl=None)
    made.admit([batch(0, b"first")])
    made.admit([batch(1, b"second")])
    assert made.lease(1, owner="a") is not None
    return made


def batch(first: int, body: bytes, **options: Any) -> Batch:
    """One call whose outcome is kept."""
    return Batch(1, body, lengths_column([body]), client=CLIENT, first=first, keep=Keep.KEEP, **options)


class Other:
    """Another thread, that begins when the queue is about to sync one of its logs, and what it knew by then."""

    def __init__(self, queue: DurableQueue, log: LogWriter, ask: Callable[[], Any]) -> None:
        self.answer: Any = None
        self.waited = False
        self._log = log
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        files: SimFiles = queue._store.files  # type: ignore[assignment]
        sync = files.sync

        def first_ask(handle: int) -> None:
            if log._file is not None and handle == log._file.handle and not self._thread.ident:
                self._thread.start()
                self._until_it_waits()
            sync(handle)

        files.sync = first_ask  # type: ignore[method-assign]
        log._commit._sync = first_ask

    def _run(self, ask: Callable[[], Any]) -> None:
        self.answer = ask()

    def _until_it_waits(self) -> None:
        """For the sync that is about to begin, or it has its answer."""
        deadline = time.monotonic() + 30
        while self._thread.is_alive() and time.monotonic() < deadline:
            if self._log._commit._turn._waiters:  # type: ignore[attr-defined]
                self.waited = True
                return
            time.sleep(0.001)

    def heard(self) -> Any:
        """Its answer, in the end."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.answer


def test_a_repeated_put_is_as_safe_as_the_first(queue: DurableQueue) -> None:
    """A producer whose connection broke asks again while its put is being synced."""
    put = [batch(2, b"third")]
    other = Other(queue, queue._store.log, lambda: queue.admit(put, producer=5, number=0))
    first = queue.admit(put, producer=5, number=0)
    assert other.heard() == first == Accepted(2, 1)
    assert other.waited, "it was told before it was safe"


def test_a_put_that_finds_its_key_in_use(queue: DurableQueue) -> None:
    """It becomes a follower of a message that must be safe too."""
    keyed = batch(2, b"third", keys=("k",), on_duplicate=OnDuplicate.RETURN)
    other = Other(queue, queue._store.log, lambda: queue.admit([keyed._replace(first=3)]))
    assert queue.admit([keyed], producer=5, number=0) == Accepted(2, 1)
    assert other.heard().count == 0
    assert other.waited, "it was told before it was safe"


@pytest.mark.parametrize("ask", ["poll", "read_kept", "subscribe", "dead_letters"])
def test_an_outcome_is_as_safe_for_who_reads_it_as_for_who_reported_it(queue: DurableQueue, ask: str) -> None:
    """Read while it is being synced."""
    asks: dict[str, Callable[[], Any]] = {
        "poll": lambda: len(queue.poll(CLIENT).outcomes),
        "read_kept": lambda: len(queue.read_kept()[1]),
        "subscribe": lambda: len(queue.subscribe(8, 0, [(CLIENT, 0)])),
        "dead_letters": lambda: len(queue.dead_letters()),
    }
    other = Other(queue, queue._store.index, asks[ask])
    if ask == "dead_letters":
        assert queue.nack(queue._ledger.leases.of("a")[0].id, [0], error=b"E", text="no") == 1
    else:
        assert queue.settle(queue._ledger.leases.of("a")[0].id, [Report(0, 1, b"value")]) == 1
    assert other.heard() == 1
    assert other.waited, "it was told before it was safe"


def test_who_waits_for_a_put_still_waits_for_the_rest_of_what_it_did(queue: DurableQueue) -> None:
    """A put that takes a key from another message: others have the queue while it syncs, and leave what it owes."""
    keyed = batch(2, b"third", keys=("k",), on_duplicate=OnDuplicate.REPLACE)
    assert queue.admit([keyed]) == Accepted(2, 1)
    commit, synced_by = queue._store.index._commit, []
    sync = commit._sync

    def noted(handle: int) -> None:
        synced_by.append(threading.current_thread())
        sync(handle)

    commit._sync = noted
    other = Other(queue, queue._store.log, lambda: queue.stats().puts)
    assert queue.admit([keyed._replace(first=3)]) == Accepted(3, 1)
    assert commit.synced == commit.written, "the message that it replaced is not safely gone"
    other.heard()
    assert synced_by == [threading.current_thread()], "another waited in its place"
