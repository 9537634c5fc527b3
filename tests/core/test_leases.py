"""The lease table: holders, progress and deadlines."""

import pytest

from daskqueue_core.leases import Lease, Leases


def lease(table: Leases, id_: int, owner: str, *runs: tuple[int, int], deadline: int = 100, request: int = 0) -> Lease:
    """A new lease in `table`."""
    made = Lease(id_, owner, runs, sum(stop - start for start, stop in runs), False, request)
    table.add(made, deadline)
    return made


def test_lease_ends_with_its_last_message() -> None:
    """Then its owner and its request are forgotten too."""
    table = Leases()
    made = lease(table, 1, "a", (0, 10), request=4)
    table.validate([(0, 10)])
    table.ended(1, [(0, 4)])
    table.cut(made, [(6, 10)])
    table.validate([(4, 6)])
    assert table.grant("a", 4) is made
    table.ended(1, [(4, 6)])
    assert (table.by_id, table.owners, table.grant("a", 4)) == ({}, {}, None)


def test_late_report_is_taken_from_whoever_holds_it() -> None:
    """Messages that lease 1 reports, and 2 and 3 hold now."""
    table = Leases()
    lease(table, 1, "a", (0, 2))
    lease(table, 2, "b", (2, 5))
    lease(table, 3, "b", (5, 8))
    table.ended(1, [(1, 7)])
    table.validate([(0, 1), (7, 8)])
    assert sorted(table.by_id) == [1, 3]


def test_what_was_cut_is_its_no_more() -> None:
    """A cut message ends elsewhere: the first lease is not touched."""
    table = Leases()
    first = lease(table, 1, "a", (0, 10))
    table.cut(first, [(3, 5)])
    lease(table, 2, "b", (3, 5))
    table.ended(1, [(3, 5)])
    table.validate([(0, 3), (5, 10)])
    assert list(first.runs) == [(0, 3), (5, 10)]
    assert first.granted == ((0, 10),)


def test_progress_counts_positions_and_only_grows() -> None:
    """Reports may overtake each other; the first may lower `started`, none after it."""
    made = Lease(1, "a", ((0, 5), (20, 25)), 10, False, 0)
    assert made.begun() == [(0, 5), (20, 25)]
    made.progress(1, 3)
    assert made.begun() == [(0, 3)]
    made.progress(4, 7)
    made.progress(2, 3)
    assert (made.finished, made.started) == (4, 7)
    assert made.begun() == [(0, 5), (20, 22)]
    made.progress(99, 99)
    assert (made.finished, made.started) == (10, 10)


def test_one_deadline_per_owner() -> None:
    """The latest of its leases and heartbeats; never earlier again."""
    table = Leases()
    lease(table, 1, "a", (0, 1), deadline=100)
    lease(table, 2, "a", (1, 2), deadline=50)
    lease(table, 3, "b", (2, 3), deadline=80)
    assert table.next_at() == 80
    table.renew("a", 120)
    table.renew("a", 10)
    table.renew("nobody", 999)
    assert table.due(79) == []
    assert table.due(80) == ["b"]
    assert sorted(table.due(120)) == ["a", "b"]
    table.shift(40)
    assert table.due(119) == []
    assert table.due(120) == ["b"]


def test_due_after_the_earliest_owner_left() -> None:
    """The remembered lower bound is raised, and an owner with an earlier deadline lowers it."""
    table = Leases()
    lease(table, 1, "a", (0, 1), deadline=10)
    lease(table, 2, "b", (1, 2), deadline=100)
    table.ended(1, [(0, 1)])
    assert table.due(50) == []
    lease(table, 3, "c", (2, 3), deadline=60)
    assert table.due(60) == ["c"]


@pytest.mark.parametrize(
    ("request_", "held", "open_requests", "sent", "released"),
    [
        (5, [], [], 5, True),
        (5, [1], [], 5, False),  # it has it
        (5, [], [5], 5, False),  # the answer is on its way
        (5, [], [], 4, False),  # the heartbeat is older than the request
        (0, [], [], 0, True),  # kept over a re-host: nobody asks for it again
    ],
)
def test_unlisted(request_: int, held: list[int], open_requests: list[int], sent: int, released: bool) -> None:
    """A lease goes back only if its grant is lost for sure."""
    table = Leases()
    lease(table, 1, "a", (0, 1), request=request_)
    assert bool(list(table.unlisted("a", held, open_requests, sent))) is released


def test_repeated_request_names_the_later_grant() -> None:
    """Two leases of one request: the end of the first does not hide the second."""
    table = Leases()
    lease(table, 1, "a", (0, 1), request=5)
    second = lease(table, 2, "a", (1, 2), request=5)
    table.ended(1, [(0, 1)])
    assert table.grant("a", 5) is second


def test_end_of_one_grant_keeps_the_others() -> None:
    """Requests of one owner are told apart."""
    table = Leases()
    made = [lease(table, number, "a", (number, number + 1), request=number) for number in (4, 5, 6)]
    table.ended(5, [(5, 6)])
    assert [table.grant("a", number) for number in (4, 5, 6)] == [made[0], None, made[2]]


def test_cut_anywhere() -> None:
    """Whoever holds them, holds them no more, and may not speak of them again."""
    table = Leases()
    first = lease(table, 1, "a", (0, 4))
    lease(table, 2, "b", (4, 6))
    table.cut_anywhere([(2, 6)])
    table.validate([(0, 2)])
    assert list(first.runs) == [(0, 2)]
    assert list(table.by_id) == [1]


def test_regrant() -> None:
    """Positions count in what was granted, though some of it is lost."""
    made = Lease(1, "a", ((2, 4),), 2, False, 0)
    made.regrant(((0, 2), (2, 4), (9, 10)))
    made.progress(2, 3)
    assert made.begun() == [(0, 3)]


def test_validate_finds_two_holders() -> None:
    """One message in two leases."""
    table = Leases()
    lease(table, 1, "a", (0, 2))
    lease(table, 2, "b", (1, 3))
    with pytest.raises(AssertionError, match="two leases"):
        table.validate([(0, 3)])
