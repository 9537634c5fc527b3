"""Who hears how messages ended."""

import pytest

from daskqueue_core.batch import Batch, Keep
from daskqueue_core.mail import AWAY, OUTBOX_BYTES, Address, Mail
from daskqueue_core.outcomes import End, KeptResults, Outcome
from daskqueue_core.payloads import Entry
from daskqueue_core.testing.clock import ManualClock

ALL = 10**9


@pytest.fixture
def clock() -> ManualClock:
    """Time of the test."""
    return ManualClock(1_000)


@pytest.fixture
def mail(clock: ManualClock) -> Mail:
    """Nobody has anything to read; kept results live for 100 ns."""
    return Mail("q:0", KeptResults(ttl=100, max_bytes=None), clock)


def entry(keep: Keep = Keep.STREAM, count: int = 10, base: int = 50) -> Entry:
    """A batch of client 1, whose first number is 500."""
    return Entry(base, Batch(count, b"", client=1, first=500, keep=keep), 0, 0)


def read(mail: Mail, client: int) -> list[Outcome]:
    """What it has not acknowledged."""
    return list(mail.poll(client, None, ALL).outcomes)


def test_to_its_client(mail: Mail) -> None:
    """And nobody else."""
    outcome = Outcome(500, 0, 10)
    mail.deliver(entry(), ((50, 60),), outcome)
    assert (mail.waits_for(1), mail.waits_for(2), mail.unread) == (True, False, 1)
    assert (read(mail, 1), read(mail, 2)) == ([outcome], [])
    assert len(mail.kept) == 0


def test_nobody_waits_for_items(mail: Mail) -> None:
    """Unless somebody follows."""
    mail.deliver(entry(Keep.NONE), ((50, 60),), Outcome(500, 0, 10))
    assert mail.unread == 0
    mail.follow(53, Address(2, 7, 0))
    mail.deliver(entry(Keep.NONE), ((50, 60),), Outcome(500, 0, 10))
    assert mail.unread == 1


def test_kept_and_collected(mail: Mail, clock: ManualClock) -> None:
    """From then on it lives for its time."""
    mail.deliver(entry(Keep.KEEP), ((50, 60),), Outcome(500, 0, 10))
    answer = mail.poll(1, None, ALL)
    assert mail.kept.next_at() is None
    clock.set(clock() + 30)
    mail.poll(1, answer.cursor, ALL)
    assert mail.next_at() == clock() + 100
    assert mail.kept.expire(clock() + 100) == [(50, 60)]


def test_a_follower_is_told_in_its_own_numbers(mail: Mail) -> None:
    """Of one message in the middle of a run, with the values of all."""
    mail.follow(57, Address(2, 900, 4))
    outcome = Outcome(500, 2, 8, ((1, 3), (5, 8)), b"values", ((5, b"E", "five"), (6, b"F", "six")))
    mail.deliver(entry(), ((53, 55), (57, 60)), outcome)
    [told] = read(mail, 2)
    assert (told.first, told.index + 5, told.accepted, told.values) == (900, 4, ((5, 6),), b"values")
    assert told.errors == ((5, b"E", "five"),)
    assert not mail.followers


@pytest.mark.parametrize("others", [0, 30])
def test_only_those_of_what_ended(mail: Mail, others: int) -> None:
    """However many wait for something else."""
    for seq in (51, 58, *range(100, 100 + others)):
        mail.follow(seq, Address(2, seq, 0))
    mail.deliver(entry(), ((50, 54), (55, 57)), Outcome(500, 0, 7, ((0, 4), (5, 7))))
    assert [told.first for told in read(mail, 2)] == [51]


def test_several_followers_of_one_message(mail: Mail) -> None:
    """Each once, though it says so twice."""
    for follower in (Address(2, 7, 0), Address(3, 7, 0), Address(2, 8, 0), Address(2, 7, 0)):
        mail.follow(50, follower)
    mail.deliver(entry(count=1), ((50, 51),), Outcome(500, 0, 1))
    assert [(told.first, told.index, told.accepted) for told in read(mail, 2)] == [(7, 0, ()), (8, 0, ())]
    assert len(read(mail, 3)) == 1


def test_unfollow(mail: Mail) -> None:
    """Those of a range of its batch; it hears that they are cancelled."""
    for index in range(4):
        mail.follow(50 + index, Address(2, 7, index))
    mail.follow(51, Address(3, 7, 1))
    mail.follow(50, Address(2, 8, 1))
    assert mail.unfollow(2, 7, 1, 3) == [(7, 1, 2), (7, 2, 3)]
    assert [(told.index, told.end) for told in read(mail, 2)] == [(1, End.CANCELLED), (2, End.CANCELLED)]
    mail.deliver(entry(), ((50, 60),), Outcome(500, 0, 10))
    assert len(read(mail, 2)) == 2 + 3
    assert len(read(mail, 3)) == 1


def test_clogged_by_who_is_there(mail: Mail, clock: ManualClock) -> None:
    """One that reads too slowly, not one that is away."""
    assert not mail.is_clogged()
    mail.deliver(entry(), ((50, 60),), Outcome(500, 0, 10, values=bytes(OUTBOX_BYTES)))
    assert mail.is_clogged()
    clock.set(clock() + AWAY)
    assert not mail.is_clogged()


def test_absent_clients(mail: Mail, clock: ManualClock) -> None:
    """After the time to live nobody reads their outcomes."""
    mail.deliver(entry(Keep.KEEP), ((50, 60),), Outcome(500, 0, 10))
    assert mail.next_at() == 1_100
    clock.set(clock() + 99)
    assert mail.drop_absent() == []
    clock.set(clock() + 1)
    assert mail.drop_absent() == [1]
    assert (read(mail, 1), len(mail.kept)) == ([], 1)


def test_a_client_that_comes_back(mail: Mail, clock: ManualClock) -> None:
    """Its old cursor acknowledges nothing of what it missed."""
    mail.deliver(entry(), ((50, 60),), Outcome(500, 0, 10))
    cursor = mail.poll(1, None, ALL).cursor
    mail.poll(1, cursor, ALL)
    clock.set(clock() + 100)
    mail.drop_absent()
    mail.deliver(entry(), ((50, 60),), Outcome(600, 0, 10))
    answer = mail.poll(1, cursor, ALL)
    assert [outcome.first for outcome in answer.outcomes] == [600]
    assert mail.poll(1, answer.cursor, ALL).outcomes == ()


def test_kept_for_ever(clock: ManualClock) -> None:
    """Without a time to live nobody is gone."""
    mail = Mail("q:0", KeptResults(ttl=None, max_bytes=None), clock)
    mail.deliver(entry(), ((50, 60),), Outcome(500, 0, 10))
    clock.set(clock() + 10**15)
    assert (mail.drop_absent(), mail.next_at(), mail.unread) == ([], None, 1)
