"""Calls that get no answer in time: asked about, and hung up if the queue is elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from daskqueue.wire import silence
from daskqueue.wire.silence import Silences, Waiting


class Comm:
    """A connection."""

    def __init__(self) -> None:
        self.aborted = asyncio.Event()

    def abort(self) -> None:
        """Hang up."""
        self.aborted.set()


class Directory:
    """Says where a queue is, if it says anything."""

    def __init__(self, there: bool = True, error: Exception | None = None) -> None:
        self.there = there
        self.error = error
        self.asked = asyncio.Event()

    async def refresh(self) -> None:
        """A question."""
        self.asked.set()
        if self.error is not None:
            raise self.error

    def waiting(self, seconds: float) -> Waiting:
        """A call whose answer should come within that time."""
        return Waiting(self.refresh, lambda: self.there, asyncio.get_running_loop().time() + seconds)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "LOOK_S", 0.005)


def run(test: Callable[[Silences], object]) -> None:
    """In an event loop."""

    async def within() -> None:
        await asyncio.wait_for(test(Silences()), 60)  # type: ignore[arg-type]

    asyncio.run(within())


def test_a_queue_that_is_elsewhere() -> None:
    """Its call ends; one that may still be answered in time is left alone, and one that has ended too."""

    async def test(silences: Silences) -> None:
        late, patient, ended = Comm(), Comm(), Comm()
        directory = Directory(there=False)
        silences.begin(patient, directory.waiting(3600))
        silences.begin(ended, directory.waiting(-1))
        silences.end(ended)
        silences.begin(late, directory.waiting(-1))
        await late.aborted.wait()
        assert not patient.aborted.is_set()
        assert not ended.aborted.is_set()

    run(test)


def test_a_host_that_is_only_slow() -> None:
    """It is asked about again and again, and not hung up before it is somewhere else."""

    async def test(silences: Silences) -> None:
        comm, directory = Comm(), Directory()
        silences.begin(comm, directory.waiting(-1))
        for _ in range(3):
            directory.asked.clear()
            await directory.asked.wait()
        assert not comm.aborted.is_set()
        directory.there = False
        await comm.aborted.wait()

    run(test)


def test_nobody_to_ask() -> None:
    """Then no answer will come: the call ends, and finds out why."""

    async def test(silences: Silences) -> None:
        comm = Comm()
        silences.begin(comm, Directory(error=OSError("gone")).waiting(-1))
        await comm.aborted.wait()

    run(test)


def test_an_answer_that_comes_meanwhile() -> None:
    """The connection may be in use for another call by then."""

    async def test(silences: Silences) -> None:
        comm, directory = Comm(), Directory(there=False)
        hold = asyncio.Event()

        async def refresh() -> None:
            directory.asked.set()
            await hold.wait()

        silences.begin(comm, directory.waiting(-1)._replace(refresh=refresh))
        await directory.asked.wait()
        silences.end(comm)
        silences.begin(comm, directory.waiting(3600))
        hold.set()
        other = Comm()
        silences.begin(other, directory.waiting(-1))
        await other.aborted.wait()
        assert not comm.aborted.is_set()

    run(test)
