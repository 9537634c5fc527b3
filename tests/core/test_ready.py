"""The order of what is ready, and the hints that find it."""

from daskqueue_core.pages import Pages
from daskqueue_core.ready import Ready
from daskqueue_core.states import Move, compiled

DELIVER, RETURN = compiled(Move.DELIVERED), compiled(Move.RETURNED)


class Line:
    """Pages and their hints, leased and given back by hand."""

    def __init__(self, count: int, size: int = 4) -> None:
        self.pages = Pages(size)
        self.ready = Ready(self.pages)
        self.pages.append(count)
        self.count = count

    def lease(self, *runs: tuple[int, int]) -> None:
        """These are delivered."""
        self.pages.write(self.pages.plan(runs, DELIVER, None))
        self.ready.leased(runs)
        self.ready.validate()

    def give(self, *runs: tuple[int, int]) -> None:
        """These come back."""
        self.pages.write(self.pages.plan(runs, RETURN, None))
        self.ready.give(runs)
        self.ready.validate()

    def runs(self, most: int = 99) -> list[tuple[int, int]]:
        """Everything that is offered."""
        return list(self.ready.runs(most, self.count))


def test_lowest_number_first() -> None:
    """What came back goes to the front, whatever the order it came back in."""
    line = Line(20)
    line.lease((0, 12))
    line.give((8, 10))
    line.give((2, 3))
    assert line.runs() == [(2, 3), (8, 10), (12, 20)]
    assert line.ready.first(2, 20) == [(2, 3), (8, 9)]
    assert line.ready.first(99, 20) == [(2, 3), (8, 10), (12, 20)]


def test_neighbours_are_joined() -> None:
    """What came back beside what is fresh is one run of a lease."""
    line = Line(10)
    line.lease((0, 6))
    line.give((4, 6))
    assert line.ready.first(3, 10) == [(4, 7)]


def test_nothing_beyond_the_commit() -> None:
    """Neither fresh messages nor returned ones."""
    line = Line(10)
    assert line.ready.first(99, 3) == [(0, 3)]
    assert line.ready.first(99, 0) == []
    line.lease((0, 8))
    line.give((2, 8))
    assert line.ready.first(99, 5) == [(2, 5)]


def test_looking_changes_nothing() -> None:
    """A decision that comes to nothing may be asked for again."""
    line = Line(20)
    line.lease((0, 10))
    line.give((1, 2), (5, 7))
    assert line.ready.first(4, 20) == line.ready.first(4, 20) == [(1, 2), (5, 7), (10, 11)]


def test_skipped_messages_stay() -> None:
    """A consumer that leaves holes leaves them to the next one, in front."""
    line = Line(20)
    line.lease((4, 5), (9, 12))
    assert line.runs() == [(0, 4), (5, 9), (12, 20)]
    assert line.ready.cursor == 12


def test_overlapping_hints_offer_once() -> None:
    """A message taken from the middle of a returned run and given back is in two hints."""
    line = Line(20)
    line.lease((0, 20))
    line.give((2, 18))
    line.lease((8, 10))
    line.give((8, 10))
    assert line.runs() == [(2, 18)]


def test_hints_do_not_pile_up() -> None:
    """Taken and given back behind a message nobody wants, ten thousand times: the heap stays small."""
    line = Line(20)
    line.lease((0, 20))
    line.give((0, 20))
    for _ in range(10_000):
        line.pages.write(line.pages.plan([(5, 6)], DELIVER, None))
        line.ready.leased([(5, 6)])
        line.pages.write(line.pages.plan([(5, 6)], RETURN, None))
        line.ready.give([(5, 6)])
    assert len(line.ready.returned) < 200
    assert line.runs() == [(0, 20)]


def test_a_long_queue_is_not_walked_for_a_few() -> None:
    """Asked for one message, a long run comes in pieces as long as was asked."""
    line = Line(100_000, 64)
    first = next(line.ready.runs(1, 100_000))
    assert first == (0, 1)
    assert sum(stop - start for start, stop in line.ready.runs(1000, 100_000)) == 100_000
