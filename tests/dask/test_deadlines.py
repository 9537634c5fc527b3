"""daskqueue.worker.deadlines: a strike meets the element that is over its deadline, and nothing else."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from daskqueue.worker import deadlines
from daskqueue.worker.deadlines import Watch, Watchdog, thread_watch
from daskqueue_core.errors import TaskTimeout

LIMIT = 30
LATER = 1e9
"""Seconds after which every deadline is over."""


class Struck:
    """A watch that only notes what is done to it."""

    def __init__(self, timeout: float = 1.0) -> None:
        self.log: list[object] = []
        self.watch = Watch(
            timeout,
            lambda index: self.log.append(index),
            absorb=lambda: self.log.append("absorbed"),
            on_overdue=lambda: self.log.append("overdue"),
        )


def in_thread(body: Callable[[], object]) -> None:
    """Run in a thread of its own, to the end; what it raises is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


# -------------------------------------------------------------------------------------------------------------- watch


def test_in_time() -> None:
    """What ends before its deadline is not struck; the next look is at the deadline."""
    it = Struck()
    it.watch.begin(0)
    assert it.watch.look(it.watch.deadline - 0.25) == it.watch.deadline
    assert it.watch.end() is False
    assert it.watch.look(LATER) == LATER + 1.0, "between elements there is all the time of the next"
    assert it.log == []


def test_late() -> None:
    """Struck once, taken back once, and `end` says so."""
    it = Struck()
    it.watch.begin(7)
    assert it.watch.look(it.watch.deadline) == it.watch.deadline + deadlines.GRACE_S
    it.watch.look(it.watch.deadline)
    assert it.watch.end() is True
    assert it.log == [7, "absorbed"]


def test_the_next_element_has_a_deadline_of_its_own() -> None:
    """Neither a strike nor a look at its predecessor counts for it."""
    it = Struck()
    it.watch.begin(0)
    it.watch.look(it.watch.deadline)
    assert it.watch.end()
    it.watch.begin(1)
    assert it.watch.look(it.watch.deadline - 0.5) == it.watch.deadline
    assert it.watch.end() is False
    assert it.watch.end() is False, "there is none"
    assert it.log == [0, "absorbed"]


def test_a_strike_does_not_put_off_the_next_deadline() -> None:
    """The next element may begin at once, and its time may be shorter than the grace."""
    it = Struck(0.02)
    it.watch.begin(0)
    now = it.watch.deadline
    for at, again in ((0, 0.02), (0.05, 0.07), (0.09, 0.1), (0.11, 0.13), (0.13, 0.15)):
        assert it.watch.look(now + at) == pytest.approx(now + again)
    assert it.log == [0, "overdue"], "which is said once a second"


def test_an_element_that_ends_while_it_is_looked_at() -> None:
    """Its deadline was over, but the next one runs by the time of the strike: neither is struck."""
    it = Struck()
    it.watch.begin(0)

    class Moment(float):
        def __lt__(self, deadline: float) -> bool:  # the look compares the deadline with now
            assert it.watch.end() is False
            it.watch.begin(1)
            return super().__lt__(deadline)

    it.watch.look(Moment(it.watch.deadline))
    assert it.log == []
    assert it.watch.end() is False


def test_a_deadline_that_began_elsewhere() -> None:
    """An element may bring what is left of its time."""
    it = Struck(60.0)
    it.watch.begin(0, 5.0)
    it.watch.look(5.0)
    assert it.log == [0]


def test_a_strike_inside_end() -> None:
    """`end` raises it; called again, it gives the answer."""
    arrivals = [TaskTimeout()]

    def absorb() -> None:
        if arrivals:
            raise arrivals.pop()

    watch = Watch(1.0, lambda index: None, absorb=absorb)
    watch.begin(0)
    watch.look(LATER)
    with pytest.raises(TaskTimeout):
        watch.end()
    assert watch.end() is True
    assert watch.end() is False


def test_end_waits_for_a_strike_under_way() -> None:
    """The watchdog has won but not struck yet: without waiting, the strike would meet the next element."""
    striking, go = threading.Event(), threading.Event()
    order: list[str] = []

    def strike(index: int) -> None:
        striking.set()
        assert go.wait(LIMIT)
        order.append("struck")

    watch = Watch(1.0, strike)
    watch.begin(0)
    dog = threading.Thread(target=watch.look, args=(LATER,))
    dog.start()
    assert striking.wait(LIMIT)
    threading.Timer(0.05, go.set).start()
    assert watch.end() is True
    order.append("ended")
    dog.join(LIMIT)
    assert order == ["struck", "ended"]


def test_overdue_is_told_until_it_ends() -> None:
    """At a tenth of a second after the strike, and each second from then on; the element is named."""
    it = Struck()
    it.watch.begin(3)
    now = it.watch.deadline
    assert it.watch.look(now) == pytest.approx(now + 0.1)
    assert it.watch.look(now + 0.05) == pytest.approx(now + 0.1)
    assert it.watch.overdue == -1
    assert it.watch.look(now + 0.11) == pytest.approx(now + 1.11)
    assert it.watch.overdue == 3
    it.watch.look(now + 1.12)
    assert it.watch.end()
    it.watch.look(now + 3.0)
    assert it.log == [3, "overdue", "overdue", "absorbed"]


def test_a_closed_watch_does_nothing_and_holds_nothing() -> None:
    """Its heap entry may outlive the job by the whole timeout."""
    it = Struck()
    it.watch.begin(0)
    it.watch.look(LATER)
    it.watch.end()
    it.watch.close()
    assert it.watch.look(LATER) is None
    watch, ref = it.watch, weakref.ref(it)
    del it
    gc.collect()
    assert ref() is None
    assert watch.is_closed


# ----------------------------------------------------------------------------------------------------------- in threads


def spin() -> None:
    """Run for ever, in Python."""
    while True:
        pass


def test_a_thread_is_struck_where_it_is() -> None:
    """TaskTimeout, a TimeoutError, comes out of the very line that runs."""

    def body() -> None:
        watch = thread_watch(0.02)
        with Watchdog().watching(watch):
            watch.begin(0)
            with pytest.raises(TimeoutError) as info:
                spin()
            assert info.type is TaskTimeout
            assert "longer than its timeout" in str(info.value)
            assert watch.end() is True

    in_thread(body)


def test_a_strike_that_has_not_arrived_is_taken_back() -> None:
    """Sent while the thread was in C: nothing comes after `end`."""
    begun, struck = threading.Event(), threading.Event()
    watches: list[Watch] = []

    def body() -> None:
        watches.append(watch := thread_watch(1.0))
        watch.begin(0)
        begun.set()
        try:
            struck.wait(LIMIT)
        except TaskTimeout:
            assert watch.end() is True
        else:
            try:
                assert watch.end() is True
            except TaskTimeout:
                assert watch.end() is True
        for _ in range(1000):
            sum(range(100))

    def strike() -> None:
        assert begun.wait(LIMIT)
        watches[0].look(LATER)
        struck.set()

    dog = threading.Thread(target=strike)
    dog.start()
    in_thread(body)
    dog.join(LIMIT)


TRACED = """
import sys, threading, time
from daskqueue.worker.deadlines import thread_watch
from daskqueue_core.errors import TaskTimeout

def run():
    begun.set()
    while True:
        time.sleep(0.001)

begun = threading.Event()
watch = thread_watch(1.0)
threading.Thread(target=lambda: begun.wait(60) and watch.look(time.monotonic() + 2.0)).start()
watch.begin(0)
try:
    run()
except TaskTimeout:
    print(watch.end())
seen = []
sys.settrace(lambda frame, event, argument: seen.append(event))
(lambda: None)()
sys.settrace(None)
print(seen)
"""


def test_a_tracer_after_a_strike() -> None:
    """A debugger, or coverage: the interpreter does not look out for what will never come, which on 3.11 is a hang."""
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.stdout.split("\n", 1) == ["True", "['call']\n"], done.stderr


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns every 10 microseconds, so that they meet in every line."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
def test_a_strike_never_leaves_its_element() -> None:
    """Thousands of elements that end just about at their deadline, with code of ours in between."""
    rng = random.Random(5)
    counts = {True: 0, False: 0}
    watches: list[Watch] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for watch in watches:
                watch.look(time.monotonic())

    def element(seconds: float) -> None:  # apart: on 3.13 an exception at a loop's end misses `except` in its function
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    def one(watch: Watch, index: int, seconds: float) -> None:
        raised = False
        try:
            try:
                watch.begin(index)
                element(seconds)
            except TaskTimeout:
                raised = True
            is_struck = watch.end()
        except TaskTimeout:
            assert not raised, "struck twice"
            raised = True
            is_struck = watch.end()
        assert is_struck or not raised
        counts[is_struck] += 1

    def body() -> None:
        watches.append(watch := thread_watch(0.0002))
        began, index = time.monotonic(), 0
        # on a busy machine the looks come late, and strikes are rare
        while min(counts.values()) < 500 and time.monotonic() - began < (5.0 if min(counts.values()) else LIMIT):
            one(watch, index, rng.uniform(0.0001, 0.0004))
            sum(range(50))  # a strike here is a failure
            index += 1

    dog = threading.Thread(target=look)
    dog.start()
    try:
        in_thread(body)
    finally:
        stop.set()
        dog.join(LIMIT)
    assert min(counts.values()) > 0, counts


# ------------------------------------------------------------------------------------------------------------- watchdog


def test_the_watchdog_survives_its_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is logged; the others are looked at all the same."""
    dog, struck = Watchdog(), threading.Event()

    def refuses(index: int) -> None:
        raise ValueError("no")

    bad, good = Watch(0.01, refuses), Watch(0.02, lambda index: struck.set())
    with caplog.at_level(logging.ERROR), dog.watching(bad), dog.watching(good):
        bad.begin(0)
        good.begin(0)
        assert struck.wait(LIMIT)
        assert bad.end()
        assert good.end()
    assert "dealing with it failed" in caplog.text


def test_an_earlier_deadline_wakes_the_watchdog() -> None:
    """It does not sleep through a short timeout because a long one came first."""
    dog, struck = Watchdog(), threading.Event()
    with dog.watching(Watch(3600.0, lambda index: None)):
        time.sleep(0)  # let it fall asleep
        short = Watch(0.02, lambda index: struck.set())
        with dog.watching(short):
            short.begin(0)
            assert struck.wait(LIMIT)
            short.end()


def test_a_first_deadline_that_is_near() -> None:
    """What began elsewhere has less than its timeout left."""
    dog, struck = Watchdog(), threading.Event()
    watch = Watch(3600.0, lambda index: struck.set())
    soon = time.monotonic() + 0.02
    with dog.watching(watch, soon):
        watch.begin(0, soon)
        assert struck.wait(LIMIT)
        watch.end()


def test_short_jobs_with_long_timeouts_leave_nothing() -> None:
    """A million of them an hour must not pile up."""
    dog = Watchdog()
    with dog.watching(Watch(3600.0, lambda index: None)):
        for _ in range(1000):
            with dog.watching(Watch(3600.0, lambda index: None)):
                assert len(dog) < 100


def test_any_timeout_will_do() -> None:
    """Longer than a lock can wait, too."""
    dog = Watchdog()
    watch = Watch(1e300, lambda index: None)
    with dog.watching(watch):
        watch.begin(0)
        struck = threading.Event()
        short = Watch(0.01, lambda index: struck.set())
        with dog.watching(short):
            short.begin(0)
            assert struck.wait(LIMIT)
            short.end()
        assert watch.end() is False
