"""Pages: bytes only where states differ, and moves that happen wholly or not at all."""

import pytest

from daskqueue_core.errors import IllegalMove
from daskqueue_core.pages import Pages
from daskqueue_core.states import CANCELLING, ByteClass, MessageState, Move, compiled

READY, DELIVERED, ACKED, GONE = (
    int(state) for state in (MessageState.READY, MessageState.DELIVERED, MessageState.ACKED, MessageState.GONE)
)
DELIVER, DROP, KEEP = compiled(Move.DELIVERED), compiled(Move.ACKED_DROP), compiled(Move.ACKED_KEEP)


def put(count: int, size: int = 4) -> Pages:
    """`count` ready messages."""
    pages = Pages(size)
    pages.append(count)
    return pages


def move(pages: Pages, table: bytes, *runs: tuple[int, int]) -> None:
    """Plan, write, check."""
    pages.write(pages.plan(runs, table, "event"))
    pages.validate()


def held(pages: Pages) -> list[int]:
    """The pages that have a byte per message."""
    return [index for index, page in pages if page.states is not None]


def test_uniform_pages_have_no_bytes() -> None:
    """Put a page at a time or one by one: nothing but counts."""
    pages = put(9)
    pages.append(1)
    move(pages, DELIVER, (0, 10))
    assert held(pages) == []
    assert [pages.byte(seq) for seq in range(10)] == [DELIVERED] * 10


def test_bytes_while_states_differ() -> None:
    """A page gets bytes when it is cut, and loses them when all agree again."""
    pages = put(8)
    move(pages, DELIVER, (1, 6))
    assert held(pages) == [0, 1]
    move(pages, DELIVER, (0, 1))
    assert held(pages) == [1]


def test_growing_page_collapses_when_full() -> None:
    """Found by the machine: the tail came back to one state before it was full, and kept its bytes for ever."""
    pages = put(3)
    move(pages, DELIVER, (0, 1))
    move(pages, compiled(Move.RETURNED), (0, 1))
    assert held(pages) == [0]
    pages.append(1)
    assert held(pages) == []
    pages.validate()


def test_finished_pages_go_but_the_tail_stays() -> None:
    """Finished work costs nothing; the page that may still grow is kept."""
    pages = put(10)
    move(pages, DELIVER, (0, 10))
    move(pages, DROP, (0, 10))
    assert [index for index, _ in pages] == [2]
    assert pages.gone == 10
    pages.append(2)
    move(pages, DELIVER, (10, 12))
    move(pages, DROP, (10, 12))
    assert [index for index, _ in pages] == []
    assert pages.select_gone() == [(0, 12)]


def test_straggler_holds_one_page() -> None:
    """One unfinished message of many keeps its own page and no other."""
    pages = put(40)
    move(pages, DELIVER, (0, 40))
    move(pages, DROP, (0, 17), (18, 40))
    assert [index for index, _ in pages] == [4]
    assert pages.select_gone() == [(0, 17), (18, 40)]


def test_refused_move_changes_nothing() -> None:
    """The last message of many is refused: the first has not moved."""
    pages = put(12)
    move(pages, DELIVER, (10, 11))
    with pytest.raises(IllegalMove) as caught:
        pages.plan([(0, 4), (5, 12)], DELIVER, "event")
    assert (caught.value.event, caught.value.state, caught.value.seq) == ("event", MessageState.DELIVERED, 10)
    assert pages.select([(0, 12)], ByteClass([READY])) == [(0, 10), (11, 12)]
    pages.validate()


@pytest.mark.parametrize("runs", [[], [(0, 2), (1, 3)], [(1, 1)], [(2, 1)], [(-1, 1)], [(2, 4)]])
def test_runs_that_make_no_sense(runs: list[tuple[int, int]]) -> None:
    """None, twice, empty, backwards, negative, never put."""
    with pytest.raises(IllegalMove):
        put(3).plan(runs, DELIVER, "event")


def test_move_uniform_is_the_common_case_only() -> None:
    """One page and one state, or nothing done and -1."""
    pages = put(8)
    assert pages.move_uniform(1, 3, DELIVER) == READY
    for start, stop in ((0, 2), (3, 5), (1, 3), (7, 9), (9, 10), (2, 2)):
        assert pages.move_uniform(start, stop, DELIVER) == -1
    pages.validate()
    assert pages.select([(0, 8)], ByteClass([DELIVERED])) == [(1, 3)]


def test_move_uniform_buries_and_collapses() -> None:
    """The straight path keeps the same books."""
    pages = put(8)
    for seq in range(8):
        pages.move_uniform(seq, seq + 1, DELIVER)
    assert held(pages) == []
    pages.move_uniform(0, 3, DROP)
    pages.move_uniform(3, 4, DROP)
    pages.validate()
    assert [index for index, _ in pages] == [1]


def test_select_joins_across_pages_and_states() -> None:
    """Runs do not end where pages do, nor between two wanted bytes."""
    pages = put(12)
    move(pages, DELIVER, (2, 11))
    move(pages, compiled(Move.CANCEL_ASKED), (4, 7))
    move(pages, KEEP, (9, 10))
    assert pages.select([(0, 12)], ByteClass([DELIVERED, CANCELLING])) == [(2, 9), (10, 11)]
    assert pages.select([(3, 5), (6, 7), (10, 99)], ByteClass([DELIVERED, CANCELLING])) == [(3, 5), (6, 7), (10, 11)]


def test_next_ready() -> None:
    """The first run in a range, over pages that are gone, mixed or whole, no longer than asked for."""
    pages = put(20)
    move(pages, DELIVER, (0, 10), (15, 16))
    move(pages, DROP, (0, 8))
    assert pages.next_ready(0, 20, 99, 0) == (10, 15)
    assert pages.next_ready(0, 20, 3, 0) == (10, 13)
    assert pages.next_ready(0, 12, 99, 0) == (10, 12)
    assert pages.next_ready(15, 20, 99, 0) == (16, 20)
    assert pages.next_ready(0, 10, 99, 0) is None
    assert pages.next_ready(20, 20, 1, 0) is None


def test_lanes_of_a_page() -> None:
    """A column only where messages of one page are in several lanes, and none for what is gone."""
    pages = put(6)
    pages.append(1, READY, 1)
    pages.append(3, READY, 2)
    assert [page.lanes is None for _, page in pages] == [True, False, True]
    assert pages.by_lane([(0, 10)]) == {0: [(0, 6)], 1: [(6, 7)], 2: [(7, 10)]}
    assert pages.by_lane([(9, 10), (4, 8)]) == {2: [(9, 10), (7, 8)], 0: [(4, 6)], 1: [(6, 7)]}
    assert pages.lanes_in_use() == {0, 1, 2}
    assert [pages.next_ready(0, 10, 99, lane) for lane in range(4)] == [(0, 6), (6, 7), (7, 10), None]
    move(pages, DELIVER, (0, 10))
    move(pages, DROP, (0, 10))
    assert pages.lanes_in_use() == {2}
    pages.append(1, READY, 7)
    pages.validate()
    assert dict(pages)[2].lanes is None
    assert pages.by_lane([(10, 11)]) == {7: [(10, 11)]}


def test_next_ready_in_a_lane_behind_others() -> None:
    """Finished ones of its own and ready ones of others lie before it."""
    pages = put(0, 16)
    for seq in range(32):
        pages.append(1, READY, seq % 3)
    move(pages, DELIVER, *[(seq, seq + 1) for seq in range(0, 24, 3)])
    assert pages.next_ready(0, 32, 99, 0) == (24, 25)
    assert pages.next_ready(0, 24, 99, 0) is None
    assert pages.next_ready(0, 32, 99, 1) == (1, 2)
    assert pages.ready_until(2, 32, 1) == 2


def test_uniform() -> None:
    """The byte of a run in one page and one state."""
    pages = put(10)
    move(pages, DELIVER, (1, 3))
    assert [pages.uniform(*run) for run in ((1, 3), (3, 4), (4, 8), (8, 10))] == [DELIVERED, READY, READY, READY]
    assert [pages.uniform(*run) for run in ((0, 2), (3, 5), (8, 11), (2, 2), (12, 13))] == [-1] * 5


def test_attempts() -> None:
    """A column from the first failure on, one count a message, at most 255; dropped when all begin anew."""
    pages = put(10)
    assert (pages.attempts(3), pages.attempts_of(0, 10)) == (0, b"")
    pages.count_attempt([(2, 6)])
    pages.count_attempt([(3, 4)])
    assert pages.attempts_of(0, 10) == bytes([0, 0, 1, 2, 1, 1, 0, 0, 0, 0])
    assert pages.attempts_of(2, 5) == bytes([1, 2, 1])
    assert pages.attempts_of(6, 10) == b""
    assert [page.attempts is None for _, page in pages] == [False, False, True]
    for _ in range(300):
        pages.count_attempt([(9, 10)])
    assert pages.attempts(9) == 255
    pages.reset_attempts([(2, 4)])
    assert [page.attempts is None for _, page in pages] == [True, False, False]
    assert pages.attempts_of(0, 6) == bytes([0, 0, 0, 0, 1, 1])
    pages.append(2)
    assert pages.attempts_of(8, 12) == bytes([0, 255, 0, 0])
    pages.validate()


@pytest.mark.parametrize("gap", [1, 2, 3, 5, 1000, 1 << 20])
@pytest.mark.parametrize("before", [0, 2, 4, 5])
def test_numbers_that_were_never_put(before: int, gap: int) -> None:
    """A lost put leaves a hole that is GONE, however wide, at no cost."""
    pages = put(before)
    pages.skip(before + gap)
    pages.validate()
    assert pages.gone == gap
    assert len(dict(pages)) <= 3
    pages.append(3, READY, 1)
    pages.validate()
    assert pages.by_lane(pages.select([(before, before + gap + 3)], ByteClass([READY]))).get(1) == [
        (before + gap, before + gap + 3)
    ]


def test_validate_finds_damage() -> None:
    """A flag where none belongs, a count that is off."""
    pages = put(4)
    move(pages, DELIVER, (0, 1))
    dict(pages)[0].states[1] = READY | 0x20
    with pytest.raises(AssertionError, match="no valid byte"):
        pages.validate()
    pages = put(4)
    pages.counts[READY] += 1
    with pytest.raises(AssertionError, match="counts"):
        pages.validate()


@pytest.mark.parametrize("size", [0, 1, 3, 100])
def test_page_size(size: int) -> None:
    """A power of two, so that a number is cut by shifting."""
    with pytest.raises(ValueError, match=f"page_size={size}"):
        Pages(size)


def test_a_million_singles_cost_a_tenth_of_a_byte() -> None:
    """Putting one by one costs what putting a batch costs: no entry per put."""
    pages = put(0, 4096)
    for _ in range(10_000):
        pages.append(1)
    assert len(dict(pages)) == 3
    assert held(pages) == []


def test_numbers_that_nobody_gets_are_counted() -> None:
    """So that a queue can say how many messages it ever had."""
    pages = Pages(8)
    pages.append(3, 0x01, 0)
    pages.skip(100)
    pages.skip(50)
    assert (pages.next_seq, pages.skipped) == (100, 97)
