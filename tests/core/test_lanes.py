"""The order of what is ready, and the hints that find it."""

import pytest

from daskqueue_core import lanes as lanes_module
from daskqueue_core.lanes import Lanes
from daskqueue_core.pages import Pages
from daskqueue_core.runs import clean
from daskqueue_core.states import READY_SUSPECT, MessageState, Move, compiled

READY = int(MessageState.READY)
DELIVER, RETURN, SUSPECT, DROP = (
    compiled(move) for move in (Move.DELIVERED, Move.RETURNED, Move.SUSPECTED, Move.ACKED_DROP)
)
Run = tuple[int, int]


class Line:
    """Pages and their hints, leased and given back by hand. `count` messages are put."""

    def __init__(self, count: int = 0, size: int = 4) -> None:
        self.pages = Pages(size)
        self.lanes = Lanes(self.pages)
        if count:
            self.put(count)

    def put(self, count: int, priority: int = 0, route: int = 0, byte: int = READY) -> None:
        """New messages; suspects are one piece."""
        lane, base = self.lanes.lane(priority, route), self.pages.next_seq
        self.pages.append(count, byte, lane.id)
        if byte == READY_SUSPECT:
            self.lanes.suspect([(base, base + count)])
        else:
            if not lane.active:
                self.lanes.activate(lane)
            if lane.cursor == lane.end:
                lane.cursor = base
            lane.end = base + count
        self.lanes.validate()

    def move(self, table: bytes, *runs: Run) -> None:
        """Change states."""
        self.pages.write(self.pages.plan(runs, table, None))

    def lease(self, *runs: Run) -> None:
        """These are delivered."""
        self.move(DELIVER, *runs)
        self.lanes.leased(runs)
        self.lanes.validate()

    def give(self, *runs: Run) -> None:
        """These come back."""
        self.move(RETURN, *runs)
        self.lanes.give(runs)
        self.lanes.validate()

    def give_suspects(self, *pieces: Run) -> None:
        """These come back, each to be leased alone."""
        self.move(SUSPECT, *pieces)
        self.lanes.suspect(pieces)
        self.lanes.validate()

    def offers(self, most: int = 99, routes: tuple[int, ...] | None = None, suspects: bool = True) -> list[Run]:
        """Everything that is offered."""
        return [(lo, hi) for lo, hi, _ in self.lanes.offers(most, self.pages.next_seq, routes, suspects)]

    def first(self, limit: int, committed: int = 1000, routes: tuple[int, ...] | None = None) -> list[Run]:
        """What a lease takes."""
        return self.lanes.first(limit, min(committed, self.pages.next_seq), routes, True)


# -- one lane


def test_lowest_number_first() -> None:
    """What came back goes to the front, whatever the order it came back in."""
    line = Line(20)
    line.lease((0, 12))
    line.give((8, 10))
    line.give((2, 3))
    assert line.offers() == [(2, 3), (8, 10), (12, 20)]
    assert line.first(2) == [(2, 3), (8, 9)]
    assert line.first(99) == [(2, 3), (8, 10), (12, 20)]


def test_neighbours_are_joined() -> None:
    """What came back beside what is fresh is one run of a lease, and so is a run over several pages."""
    line = Line(10)
    line.lease((0, 6))
    line.give((4, 6))
    assert line.first(3) == [(4, 7)]
    assert Line(20).first(13) == [(0, 13)]


def test_nothing_beyond_the_commit() -> None:
    """Neither fresh messages nor returned ones."""
    line = Line(10)
    assert line.first(99, 3) == [(0, 3)]
    assert line.first(99, 0) == []
    line.lease((0, 8))
    line.give((2, 8))
    assert line.first(99, 5) == [(2, 5)]


def test_looking_changes_nothing() -> None:
    """A decision that comes to nothing may be asked for again."""
    line = Line(20)
    line.lease((0, 10))
    line.give((1, 2), (5, 7))
    assert line.first(4) == line.first(4) == [(1, 2), (5, 7), (10, 11)]


def test_skipped_messages_stay() -> None:
    """A consumer that leaves holes leaves them to the next one, in front."""
    line = Line(20)
    line.lease((4, 5), (9, 12))
    assert line.offers() == [(0, 4), (5, 9), (12, 20)]
    assert line.lanes.by_id[0].cursor == 12


def test_overlapping_hints_offer_once() -> None:
    """A message taken from the middle of a returned run and given back is in two hints."""
    line = Line(20)
    line.lease((0, 20))
    line.give((2, 18))
    line.lease((8, 10))
    line.give((8, 10))
    assert line.offers() == [(2, 18)]


def test_hints_do_not_pile_up() -> None:
    """Taken and given back behind a message nobody wants, ten thousand times: the heap stays small."""
    line = Line(20)
    line.lease((0, 20))
    line.give((0, 20))
    for _ in range(10_000):
        line.move(DELIVER, (5, 6))
        line.lanes.leased([(5, 6)])
        line.move(RETURN, (5, 6))
        line.lanes.give([(5, 6)])
    assert len(line.lanes.by_id[0].returned) < 200
    assert line.offers() == [(0, 20)]


def test_a_long_queue_is_not_walked_for_a_few() -> None:
    """Asked for one message, a long run comes in pieces as long as was asked."""
    line = Line(100_000, 64)
    assert next(line.lanes.offers(1, 100_000)) == (0, 1, False)
    assert sum(stop - start for start, stop in line.offers(1000)) == 100_000


# -- many lanes


def test_priority_then_number() -> None:
    """Whatever the order they were put in, and also inside one page."""
    line = Line()
    for count, priority in ((2, 0), (3, 7), (1, -2), (2, 0), (2, 7)):
        line.put(count, priority)
    assert line.offers() == [(2, 5), (8, 10), (0, 2), (6, 8), (5, 6)]
    assert line.first(6) == [(2, 5), (8, 10), (0, 1)]
    line.lease((2, 5), (8, 9), (0, 1))
    line.give((3, 4), (0, 1))
    assert line.offers() == [(3, 4), (9, 10), (0, 1), (1, 2), (6, 8), (5, 6)]


def test_routes_are_served_together_by_number() -> None:
    """A consumer sees the routes it serves as one line; the others wait untouched."""
    line = Line()
    for count, route in ((2, 0), (3, 1), (4, 2), (2, 0), (2, 1)):
        line.put(count, 0, route)
    assert line.offers(routes=(0, 1)) == [(0, 2), (2, 5), (9, 11), (11, 13)]
    assert line.first(99, routes=(0, 1)) == [(0, 5), (9, 13)]
    assert line.offers(routes=(2,)) == [(5, 9)]
    assert line.offers(routes=()) == []
    line.lease((5, 9))
    assert line.first(99) == [(0, 5), (9, 13)]


def test_a_lane_that_has_nothing_is_not_looked_at() -> None:
    """Until something is put into it, or comes back."""
    line = Line(3)
    for priority in range(1, 50):
        line.put(1, priority)
    line.lease((3, 52))
    assert line.offers() == [(0, 3)]
    assert len(line.lanes.active) == 1
    line.give((10, 11))
    line.put(2, 49)
    assert line.offers() == [(52, 54), (10, 11), (0, 3)]


def test_neighbours_in_one_lane_only() -> None:
    """Ready messages of several lanes side by side in one page are never taken for one run."""
    line = Line(size=8)
    for route in (0, 1, 0, 1, 0):
        line.put(1, 0, route)
    assert line.offers(routes=(0,)) == [(0, 1), (2, 3), (4, 5)]
    line.lease((2, 3))
    assert line.offers(routes=(0,)) == [(0, 1), (4, 5)]
    assert line.offers(routes=(1,)) == [(1, 2), (3, 4)]


def test_lanes_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """More priorities over time than lanes fit a page's column: those of finished messages make room."""
    monkeypatch.setattr(lanes_module, "MAX_LANES", 5)
    line = Line(4)
    for priority in range(1, 5):
        line.put(4, priority)
    with pytest.raises(ValueError, match=r"priority=5, route=0: .* 5 different priorities"):
        line.put(4, 5)
    for start in (8, 12):
        line.lease((start, start + 4))
        line.move(DROP, (start, start + 4))
    line.put(4, 5)
    line.put(4, -1)
    assert [lane.priority for lane in line.lanes.active] == [5, 4, 1, 0, -1]
    assert line.offers() == [(20, 24), (16, 20), (4, 8), (0, 4), (24, 28)]
    line.lanes.validate()


@pytest.mark.parametrize(("priority", "route"), [(1 << 15, 0), (-(1 << 15) - 1, 0), (0, -1)])
def test_strange_priorities(priority: int, route: int) -> None:
    """A mistake of the caller, named."""
    with pytest.raises(ValueError, match=f"priority={priority}, route={route}"):
        Lanes(Pages(4)).lane(priority, route)


# -- suspects


def test_a_piece_is_leased_alone() -> None:
    """First in line it is all of a lease; a lease ends before it, and never reaches past it to a lower priority."""
    line = Line(12)
    line.put(4, -1)
    line.lease((0, 8))
    line.give_suspects((2, 4), (4, 6))
    line.give((0, 2), (6, 7))
    assert line.offers() == [(0, 2), (2, 4), (4, 6), (6, 7), (8, 12), (12, 16)]
    assert line.first(99) == [(0, 2)]
    line.lease((0, 2))
    assert line.first(99) == [(2, 4)]
    assert line.first(1) == [(2, 3)]
    assert line.lanes.first(99, 16, None, False) == [(6, 7), (8, 16)]


def test_what_is_left_of_a_piece() -> None:
    """A lease took its beginning; new pieces replace the older ones they are parts of."""
    line = Line(12)
    line.lease((0, 12))
    line.give_suspects((0, 5), (5, 12))
    line.move(DELIVER, (0, 2))
    line.lanes.tried(0, 2)
    assert line.offers() == [(2, 5), (5, 12)]
    line.move(DELIVER, (5, 12))
    line.lanes.tried(5, 12)
    line.give_suspects((5, 7), (7, 9))
    line.give_suspects((0, 1), (1, 2))
    assert line.offers() == [(0, 1), (1, 2), (2, 5), (5, 7), (7, 9)]
    line.move(DELIVER, (2, 9))
    for run in ((2, 5), (5, 9)):
        line.lanes.tried(*run)
    assert line.lanes.by_id[0].suspects == [(0, 1), (1, 2)]


def test_pieces_of_what_was_no_suspect_meanwhile() -> None:
    """Damaged and requeued it left its piece unseen; suspect again, only the new pieces count."""
    line = Line(8)
    line.lease((0, 8))
    line.give_suspects((0, 8))
    for move in (Move.DAMAGED, Move.REQUEUED):
        line.move(compiled(move), (0, 6))
    line.lanes.give([(0, 6)])
    line.lease((0, 6))
    line.give_suspects((0, 2), (2, 4))
    assert line.offers() == [(0, 2), (2, 4), (6, 8)]


def test_pieces_do_not_cross_lanes() -> None:
    """One that does is two."""
    line = Line(4)
    line.put(4, 3)
    line.lease((0, 8))
    line.give_suspects((2, 6))
    assert line.offers() == [(4, 6), (2, 4)]


def test_suspects_that_end_meanwhile() -> None:
    """They leave holes, and nothing where all of a piece ended."""
    line = Line()
    line.put(9, byte=READY_SUSPECT)
    line.move(DROP, (0, 1), (3, 4))
    assert line.offers() == [(1, 3), (4, 9)]
    line.move(DROP, (1, 3), (4, 9))
    assert line.offers() == []
    assert line.lanes.by_id[0].suspects == []


def test_validate_finds_a_forgotten_message() -> None:
    """Ready and in no hint, of either kind."""
    line = Line(8)
    line.lease((0, 4))
    line.move(RETURN, (1, 2))
    with pytest.raises(AssertionError, match=r"ready \[\(1, 2\)\] are in no hint"):
        line.lanes.validate()
    line.lanes.give([(1, 2)])
    line.lanes.validate()
    line.move(SUSPECT, (2, 3))
    with pytest.raises(AssertionError, match=r"ready \[\(2, 3\)\] are in no hint"):
        line.lanes.validate()
    assert clean(line.lanes.by_id[0].returned) == [(1, 2)]
