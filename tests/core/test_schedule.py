"""When messages fall due: earliest first, joined, cheap by the million."""

import random
import tracemalloc
from array import array

import pytest

from daskqueue_core import schedule as schedule_module
from daskqueue_core.schedule import NEVER, Schedule


def schedule(*entries: tuple[int, int, int]) -> Schedule:
    """A schedule of `(time, start, stop)`."""
    made = Schedule()
    for entry in entries:
        made.add(*entry)
    made.validate()
    return made


def test_due_in_time() -> None:
    """What its time has come for, and nothing else; `first` says when there is more."""
    made = schedule((30, 0, 2), (10, 5, 7), (20, 9, 10))
    assert made.first == 10
    assert made.due(9) == []
    assert made.due(20) == [(5, 7), (9, 10)]
    made.validate()
    assert (made.first, len(made)) == (30, 1)
    assert made.due(99) == [(0, 2)]
    assert (made.first, len(made)) == (NEVER, 0)


def test_what_falls_due_together_is_joined() -> None:
    """Sorted by number, whatever the order of times and of adding, over chunks too."""
    made = Schedule()
    order = list(range(20_000))
    random.Random(1).shuffle(order)
    for seq in order:
        made.add(seq % 7, seq, seq + 1)
    made.validate()
    assert made.due(6) == [(0, 20_000)]


def test_equal_times_of_neighbours_are_one_run() -> None:
    """A million puts for one time cost one entry."""
    made = schedule((5, 0, 3), (5, 3, 4), (5, 5, 6))
    assert len(made) == 2
    assert made.runs() == [(5, 0, 4), (5, 5, 6)]


def test_a_time_for_each() -> None:
    """A column of times, one for each of consecutive messages; all equal, they are one run."""
    made = Schedule()
    made.add_each(array("Q", [30, 10, 20]), 100)
    made.add_each(array("Q", [40, 40]), 103)
    made.validate()
    assert (made.first, len(made)) == (10, 4)
    assert made.due(20) == [(101, 103)]
    assert made.due(99) == [(100, 101), (103, 105)]


def test_a_limit_takes_the_earliest() -> None:
    """So that a million that fall due at once do not keep everybody waiting."""
    made = schedule(*[(10 + seq, 2 * seq, 2 * seq + 1) for seq in range(10)])
    assert made.due(99, limit=3) == [(0, 1), (2, 3), (4, 5)]
    assert made.first == 13
    assert len(made.due(99, limit=100)) == 7


def test_added_while_others_fall_due() -> None:
    """Retries come and go; the order of time is kept over many small chunks."""
    made = Schedule()
    waiting: dict[int, int] = {}
    chance = random.Random(2)
    for seq in range(3000):
        now = seq
        time = now + chance.randrange(1, 50)
        made.add(time, seq, seq + 1)
        waiting[seq] = time
        due = {seq for start, stop in made.due(now) for seq in range(start, stop)}
        assert due == {seq for seq, time in waiting.items() if time <= now}
        waiting = {seq: time for seq, time in waiting.items() if time > now}
    made.validate()


def test_remove_cuts() -> None:
    """A message that waits no more may wait again for another time: the old entry is gone."""
    made = schedule((10, 0, 10), (20, 10, 12), (30, 12, 20))
    made.remove([(2, 4), (6, 7), (9, 13)])
    made.validate()
    assert made.runs() == [(10, 0, 2), (10, 4, 6), (10, 7, 9), (30, 13, 20)]
    assert made.first == 10


def test_prune_drops_what_waits_no_more() -> None:
    """Messages that ended long before their time leave entries behind: not for ever."""
    made = Schedule()
    for seq in range(100_000):
        made.add(1000 + seq, 2 * seq, 2 * seq + 1)
        if made.is_crowded:
            made.prune(lambda run: [run] if run[0] >= 2 * seq else [])  # noqa: B023
    assert len(made) < 20_000
    made.validate()


def test_long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More messages than a count holds are several entries."""
    monkeypatch.setattr(schedule_module, "_LONGEST", 10)
    made = schedule((5, 0, 25), (5, 25, 28))
    assert made.runs() == [(5, 0, 10), (5, 10, 20), (5, 20, 28)]
    made.add(5, 28, 40)
    assert made.due(5) == [(0, 40)]


def test_columns() -> None:
    """A schedule restored is the same, also when some of a chunk has fallen due."""
    made = Schedule()
    for seq in range(10_000):
        made.add(seq * 7919 % 10_007, seq, seq + 1)
    made.due(5000)
    made.add(3, 20_000, 20_001)
    again = Schedule()
    again.load(made.columns())
    again.validate()
    assert (again.first, len(again), again.columns()) == (made.first, len(made), made.columns())
    assert again.due(7000) == made.due(7000)
    empty = Schedule()
    empty.load(Schedule().columns())
    assert (empty.first, len(empty)) == (NEVER, 0)


def test_a_past_time_is_zero() -> None:
    """A clock before the epoch is nobody's business."""
    assert schedule((-5, 0, 1)).first == 0


def test_a_hundred_thousand_times_cost_two_megabytes() -> None:
    """Twenty bytes each."""
    tracemalloc.start()
    try:
        made = Schedule()
        for base in range(0, 100_000, 1000):
            made.add_each(array("Q", [(base + at) * 104_729 % (1 << 50) for at in range(1000)]), base)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made) == 100_000
    assert used < 2_600_000
