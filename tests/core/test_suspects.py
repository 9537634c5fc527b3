"""Who may have killed a worker."""

import pytest

from daskqueue_core.events import Blame, Event, Failed, Reason, Returned
from daskqueue_core.leases import Lease
from daskqueue_core.ledger import Ledger
from daskqueue_core.suspects import after_loss, candidates, culprit, pieces

Run = tuple[int, int]


def loss(lease: Lease, held: list[Run], *, last: bool = False) -> list[tuple[type, list[Run], Reason, Blame | None]]:
    """What becomes of a lost lease."""
    blamed = culprit(candidates(lease, held), [])
    events: list[Event] = list(after_loss(lease, held, 7, Reason.OWNER_LOST, blamed, is_last_crash=lambda seq: last))
    seen = []
    for event in events:
        assert isinstance(event, (Returned, Failed))
        assert (event.time, event.lease) == (7, lease.id)
        seen.append((type(event), list(event.runs), event.reason, getattr(event, "blame", None)))
    return seen


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ((0, 1), [(0, 1)]),
        ((3, 6), [(3, 4), (4, 5), (5, 6)]),
        ((0, 8), [(at, at + 1) for at in range(8)]),
        ((0, 10), [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
        ((0, 2500), [(at, min(at + 313, 2500)) for at in range(0, 2500, 313)]),
    ],
)
def test_eighths(run: Run, expected: list[Run]) -> None:
    """At most eight pieces, nearly equal, and never an empty one."""
    assert pieces([run]) == expected


def test_only_what_was_running_is_suspect() -> None:
    """What had not begun goes back without blame, and so does what had ended but was not reported."""
    lease = Lease(1, "a", ((0, 10),), 10, False, 0)
    lease.progress(2, 5)
    assert loss(lease, [(1, 10)]) == [
        (Returned, [(1, 2), (5, 10)], Reason.OWNER_LOST, Blame.NONE),
        (Returned, [(2, 5)], Reason.OWNER_LOST, Blame.SUSPECTED),
    ]


def test_one_candidate_did_it() -> None:
    """Alone in its lease, or the one the heartbeat named, or the only one left: it counts a crash."""
    lease = Lease(1, "a", ((0, 10),), 10, False, 0)
    assert loss(lease, [(4, 5)]) == [(Returned, [(4, 5)], Reason.OWNER_LOST, Blame.CRASH)]
    lease.progress(4, 5)
    assert loss(lease, [(3, 6)])[1] == (Returned, [(4, 5)], Reason.OWNER_LOST, Blame.CRASH)
    assert loss(lease, [(4, 5)], last=True) == [(Failed, [(4, 5)], Reason.CRASHED, None)]


@pytest.mark.parametrize(
    ("running", "suspects", "it"),
    [([], [], None), ([(4, 5)], [], 4), ([(4, 6)], [], None), ([(4, 6)], [(5, 6)], 5), ([(1, 9)], [(4, 6)], None)],
)
def test_culprit(running: list[Run], suspects: list[Run], it: int | None) -> None:
    """The only one that ran, or the only one of them that was a suspect before."""
    assert culprit(running, suspects) == it


def test_one_of_many_is_blamed() -> None:
    """The others become suspects."""
    lease = Lease(1, "a", ((0, 5),), 5, False, 0)
    events = list(after_loss(lease, [(0, 5)], 7, Reason.LAPSED, 2, is_last_crash=lambda seq: True))
    assert events == [
        Returned(7, ((0, 2), (3, 5)), 1, Reason.LAPSED, Blame.SUSPECTED),
        Failed(7, ((2, 3),), 1, Reason.CRASHED),
    ]


def test_several_candidates_never_fail() -> None:
    """However many crashes they have: nobody knows that it was they."""
    lease = Lease(1, "a", ((0, 10),), 10, False, 0)
    assert loss(lease, [(0, 3)], last=True) == [(Returned, [(0, 3)], Reason.OWNER_LOST, Blame.SUSPECTED)]


def test_nothing_was_running() -> None:
    """The consumer had not begun, or had ended all of it."""
    lease = Lease(1, "a", ((0, 10),), 10, False, 0)
    lease.progress(0, 0)
    assert loss(lease, [(0, 10)]) == [(Returned, [(0, 10)], Reason.OWNER_LOST, Blame.NONE)]


def test_progress_counts_positions_of_a_mixed_lease() -> None:
    """A lease over two priorities is not in number order."""
    lease = Lease(1, "a", ((50, 53), (10, 13)), 6, False, 0)
    lease.progress(2, 4)
    assert loss(lease, [(10, 13), (50, 53)]) == [
        (Returned, [(11, 13), (50, 52)], Reason.OWNER_LOST, Blame.NONE),
        (Returned, [(10, 11), (52, 53)], Reason.OWNER_LOST, Blame.SUSPECTED),
    ]


@pytest.mark.parametrize(
    ("culprits", "leases", "killed"), [((), 8, 1), ((1234,), 30, 7), ((77, 2100), 54, 13)], ids=["none", "one", "two"]
)
def test_a_culprit_among_2500(culprits: tuple[int, ...], leases: int, killed: int) -> None:
    """A lease of 2,500 is lost; workers die until each culprit has three crashes. The costs are what was promised."""
    ledger = Ledger()
    ledger.apply(ledger.decide_put(2500, 0))  # type: ignore[arg-type]
    ledger.commit(2500)
    count = deaths = 0
    while (event := ledger.decide_lease(2500, f"w{count}", 0, 1)) is not None:
        ledger.apply(event)
        count += 1
        seqs = {seq for start, stop in event.runs for seq in range(start, stop)}
        if count == 1 or seqs & set(culprits):
            deaths += 1
            for lost in ledger.decide_owner_lost(event.owner, 0, reason=Reason.OWNER_LOST):
                ledger.apply(lost)
        else:
            done = ledger.decide_ack(event.lease, None, 0, keep=False)
            assert done is not None
            ledger.apply(done)
        ledger.validate()
    assert ledger.unfinished == 0
    assert [ledger.crashes(seq) for seq in culprits] == [3] * len(culprits)
    assert abs(count - 1 - leases) <= 2
    assert abs(deaths - killed) <= 1
