"""daskqueue.worker.slots: what runs, what waits, and who takes the next."""

import threading

from daskqueue.worker.chunk import Chunk
from daskqueue.worker.slots import Slots


class AsyncJob:
    """Stands for a job of the private loop."""

    is_async = True


def chunk(lease: int, uuid: str = "q", *, for_loop: bool = False) -> Chunk:
    """A chunk of one message."""
    return Chunk(0, uuid, lease, b"f", [(0, 1, AsyncJob() if for_loop else None)])  # type: ignore[list-item]


def filled(size: int, *waiting: Chunk) -> Slots:
    """Slots with chunks that wait."""
    slots = Slots()
    slots.size = size
    for one in waiting:
        slots.add(one)
    return slots


def test_no_more_than_the_slots_run() -> None:
    """In order, and what has no slot waits."""
    first, second, third = chunk(1), chunk(2), chunk(3)
    slots = filled(2, first, second, third)
    assert (slots.take(), slots.take(), slots.take()) == (first, second, None)
    assert (slots.is_full, slots.is_waiting, slots.free) == (True, True, -1)
    slots.ended(first)
    assert slots.take() is third
    assert set(slots.running()) == {second, third}


def test_a_thread_goes_on_with_what_waits() -> None:
    """Without the event loop; it counts as running from then on."""
    first, second = chunk(1), chunk(2)
    slots = filled(1, first, second)
    slots.take()
    assert slots.next_after(first) is second
    assert slots.running() == [second]
    assert slots.next_after(second) is None
    assert slots.free == 1


def test_a_thread_leaves_coroutines_to_the_loop() -> None:
    """And with them what waits behind, so that the order holds."""
    first, other, third = chunk(1), chunk(2, for_loop=True), chunk(3)
    slots = filled(1, first, other, third)
    slots.take()
    assert slots.next_after(first) is None
    assert slots.take() is other


def test_fewer_slots_stop_a_thread() -> None:
    """After a resize a thread ends with what it has."""
    first, second, third = chunk(1), chunk(2), chunk(3)
    slots = filled(2, first, second, third)
    slots.take(), slots.take()
    slots.size = 1
    assert slots.next_after(first) is None
    assert slots.next_after(second) is third


def test_what_waits_can_be_taken_away() -> None:
    """All of it, or what belongs to one life of a queue."""
    old, new, other = chunk(1, "old"), chunk(2, "new"), chunk(3, "old")
    slots = filled(1, old, new, other)
    assert slots.take_waiting("old") == [old, other]
    assert slots.waiting() == [new]
    assert slots.take_waiting() == [new]
    assert slots.take() is None


def test_nothing_runs_twice_or_never() -> None:
    """Threads take, others take away: each chunk ends in one place."""
    slots = filled(8, *(chunk(n) for n in range(2_000)))
    ran: list[Chunk] = []

    def work() -> None:
        following = slots.take()
        while following is not None:
            ran.append(following)
            following = slots.next_after(following)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    taken = slots.take_waiting()
    for thread in threads:
        thread.join(10)
    assert sorted(one.lease for one in [*ran, *taken]) == list(range(2_000))
    assert not slots.running()
