"""Group commit without a disk: who leads, who follows, and what a failure does."""

import threading

import pytest

from daskqueue_storage.commit import Commit, SyncFailed


class Disk:
    """A sync that ends when it is told to."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.handles: list[int] = []
        self.failing: BaseException | None = None

    def sync(self, handle: int) -> None:
        """Like fdatasync."""
        self.handles.append(handle)
        self.began.release()
        assert self.may_end.acquire(timeout=30)
        if self.failing is not None:
            raise self.failing


class Waiter(threading.Thread):
    """Waits for a ticket; `ended` is "durable", or the error."""

    def __init__(self, commit: Commit, ticket: int) -> None:
        super().__init__(daemon=True)
        self.commit, self.ticket = commit, ticket
        self.ended: object = None
        self.start()

    def run(self) -> None:
        """In its thread."""
        try:
            self.commit.wait(self.ticket)
            self.ended = "durable"
        except BaseException as problem:
            self.ended = problem


def test_one_sync_serves_who_wrote_before_it_began() -> None:
    """One leads; those who come while it syncs wait for the next one, which serves them all."""
    disk = Disk()
    commit = Commit(disk.sync)
    commit.wrote(1, 5)
    leader = Waiter(commit, 1)
    assert disk.began.acquire(timeout=30)
    commit.wrote(4, 5)  # written after the sync began: not covered by it
    followers = [Waiter(commit, ticket) for ticket in (2, 3, 4)]
    disk.may_end.release()
    leader.join(30)
    assert disk.began.acquire(timeout=30)
    assert (leader.ended, commit.synced) == ("durable", 1)
    assert {follower.ended for follower in followers} == {None}
    disk.may_end.release()
    for follower in followers:
        follower.join(30)
    assert {follower.ended for follower in followers} == {"durable"}
    assert (commit.syncs, commit.synced, disk.handles) == (2, 4, [5, 5])


def test_what_is_durable_needs_no_sync() -> None:
    """A ticket that a sync has covered returns at once."""
    commit = Commit(lambda handle: None)
    commit.wrote(3, 1)
    commit.wait(3)
    commit.wait(2)
    assert commit.syncs == 1
    with pytest.raises(AssertionError):
        commit.wait(4)  # never written: it would wait for ever


def test_a_failed_sync_is_never_repeated() -> None:
    """All who waited fail, all who come later too, and the disk is not asked again. What was durable stays so."""
    disk = Disk()
    commit = Commit(disk.sync)
    disk.may_end.release()
    commit.wrote(1, 5)
    commit.wait(1)
    disk.failing = OSError(5, "broken")
    commit.wrote(3, 5)
    first = Waiter(commit, 2)
    disk.began.acquire(timeout=30)
    assert disk.began.acquire(timeout=30)
    second = Waiter(commit, 3)
    disk.may_end.release()
    for waiter in (first, second):
        waiter.join(30)
        assert isinstance(waiter.ended, SyncFailed)
        assert waiter.ended.__cause__ is disk.failing
    commit.wait(1)
    for deed in (lambda: commit.wait(2), lambda: commit.exclusive().__enter__()):
        with pytest.raises(SyncFailed):
            deed()
    assert len(disk.handles) == 2


def test_an_interrupted_leader_hands_over() -> None:
    """Ctrl-C in the middle of a sync: nothing is known, nothing is broken, the next one syncs."""
    disk = Disk()
    commit = Commit(disk.sync)
    commit.wrote(1, 5)
    disk.failing = KeyboardInterrupt()
    leader = Waiter(commit, 1)
    assert disk.began.acquire(timeout=30)
    follower = Waiter(commit, 1)
    disk.may_end.release()
    leader.join(30)
    assert isinstance(leader.ended, KeyboardInterrupt)
    disk.failing = None
    disk.may_end.release()
    follower.join(30)
    assert follower.ended == "durable"


def test_files_are_exchanged_while_nobody_syncs() -> None:
    """`exclusive` waits for the leader, syncs what is left, and the next sync goes to the new file."""
    disk = Disk()
    commit = Commit(disk.sync)
    commit.wrote(1, 5)
    leader = Waiter(commit, 1)
    assert disk.began.acquire(timeout=30)
    order: list[str] = []

    def exchange() -> None:
        with commit.exclusive():
            order.append("exclusive")
            commit.wrote(2, 6)

    roller = threading.Thread(target=exchange, daemon=True)
    roller.start()
    assert order == []
    disk.may_end.release()
    leader.join(30)
    roller.join(30)
    assert order == ["exclusive"]
    disk.may_end.release()
    commit.wait(2)
    assert disk.handles == [5, 6]


def test_a_flush_is_a_sync_that_nobody_waits_for() -> None:
    """Not beside another one, nor when the file is about to be closed."""
    disk = Disk()
    disk.may_end.release()
    commit = Commit(disk.sync)
    commit.wrote(1, 5)
    commit.flush()
    assert commit.synced == 1
    commit.wrote(2, 5)
    leader = Waiter(commit, 2)
    assert disk.began.acquire(timeout=30)
    assert disk.began.acquire(timeout=30)
    commit.flush()
    disk.may_end.release()
    leader.join(30)
    commit.wrote(3, 5)
    commit.end(lambda: None)
    commit.flush()
    assert (disk.handles, commit.synced) == ([5, 5], 2)


def test_a_file_is_closed_when_nobody_syncs() -> None:
    """At once, or by who syncs, when that is done."""
    closed: list[str] = []
    Commit(Disk().sync).end(lambda: closed.append("at once"))
    assert closed == ["at once"]
    disk = Disk()
    commit = Commit(disk.sync)
    commit.wrote(1, 5)
    leader = Waiter(commit, 1)
    assert disk.began.acquire(timeout=30)
    commit.end(lambda: closed.append("by the leader"))
    assert closed == ["at once"]
    disk.may_end.release()
    leader.join(30)
    assert (closed, leader.ended) == (["at once", "by the leader"], "durable")


def test_who_waits_is_told_that_a_flush_failed() -> None:
    """And it is not tried again."""
    disk = Disk()
    disk.failing = OSError(5, "lost")
    disk.may_end.release()
    commit = Commit(disk.sync)
    commit.wrote(1, 5)
    commit.flush()
    commit.flush()
    with pytest.raises(SyncFailed):
        commit.wait(1)
    assert disk.handles == [5]
