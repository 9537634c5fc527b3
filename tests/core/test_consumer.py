"""A consumer's side: open requests, held leases, progress."""

import pytest

from daskqueue_core.consumer import Heartbeat, LeaseBook, RequestNumbers


@pytest.fixture
def numbers() -> RequestNumbers:
    """The owner's counter."""
    return RequestNumbers()


@pytest.fixture
def book(numbers: RequestNumbers) -> LeaseBook:
    """An empty book."""
    return LeaseBook(numbers)


def test_numbers_are_shared(numbers: RequestNumbers) -> None:
    """One counter for all books of an owner, from 1."""
    a, b = LeaseBook(numbers), LeaseBook(numbers)
    assert [a.request(), b.request(), a.request()] == [1, 2, 3]
    assert a.heartbeat() == Heartbeat({}, (1, 3), 3)
    assert b.heartbeat() == Heartbeat({}, (2,), 3)


def test_a_new_book_has_nothing_to_say(book: LeaseBook) -> None:
    """No heartbeat is due."""
    assert not book.active
    assert book.held == []
    assert book.heartbeat() == Heartbeat({}, (), 0)


def test_a_request_is_open_until_its_answer(book: LeaseBook) -> None:
    """Then its lease is held; in between there is no moment without either."""
    number = book.request()
    assert book.heartbeat() == Heartbeat({}, (1,), 1)
    assert book.granted(number, 77, 10)
    assert book.active
    assert book.heartbeat() == Heartbeat({77: (0, 10)}, (), 1)


def test_a_request_alone_needs_no_heartbeat(book: LeaseBook) -> None:
    """It holds nothing that could lapse. As soon as it is given up, or something is held, there is something to say."""
    first, second = book.request(), book.request()
    assert not book.active
    book.give_up(first)
    assert book.active
    book.heartbeat()
    book.heartbeat()
    assert not book.active
    book.granted(second, 77, 1)
    assert book.active


def test_a_request_answered_with_nothing(book: LeaseBook) -> None:
    """It is over, and its number counts as sent."""
    book.withdraw(book.request())
    assert not book.active
    assert book.heartbeat().sent == 1


def test_a_request_given_up(book: LeaseBook) -> None:
    """Its grant may be under way: two more heartbeats say that nobody waits for it, then there is silence."""
    number = book.request()
    book.give_up(number)
    assert not book.granted(number, 77, 10)
    assert book.active
    assert book.heartbeat() == Heartbeat({}, (), 1)
    assert book.active
    assert book.heartbeat() == Heartbeat({}, (), 1)
    assert not book.active


def test_a_request_that_was_given_up(book: LeaseBook) -> None:
    """Two more heartbeats are said, so that a grant under way goes back; it is not run if it arrives."""
    number = book.request()
    book.give_up(number)
    for _ in range(2):
        assert book.active
        assert book.heartbeat() == Heartbeat({}, (), 1)
    assert not book.active
    assert not book.granted(number, 77, 10)


def test_given_up_before_the_queue_was_lost(book: LeaseBook) -> None:
    """There is nobody left to tell."""
    book.give_up(book.request())
    book.queue_lost()
    assert not book.active


def test_a_grant_of_a_withdrawn_request(book: LeaseBook) -> None:
    """It is not run: the queue may have taken it back already."""
    number = book.request()
    book.withdraw(number)
    assert not book.granted(number, 77, 10)
    assert book.held == []


def test_a_grant_that_comes_twice(book: LeaseBook) -> None:
    """The second is not run again, and the first stays as it is."""
    number = book.request()
    book.granted(number, 77, 10)
    book.settled(77, 4)
    assert not book.granted(number, 77, 10)
    assert book.settled(77, 6)


def test_progress(book: LeaseBook) -> None:
    """What has run only grows; what has begun is as last said."""
    book.granted(book.request(), 77, 10)
    book.progress(77, 2, 5)
    assert book.heartbeat().held == {77: (2, 5)}
    book.progress(77, 1, 7)
    assert book.heartbeat().held == {77: (2, 7)}
    book.progress(99, 1, 1)
    assert book.held == [77]


def test_a_lease_is_held_until_its_last_answer(book: LeaseBook) -> None:
    """Reports and releases alike: only when all are answered it leaves the heartbeat."""
    book.granted(book.request(), 77, 10)
    assert not book.settled(77, 9)
    assert book.held == [77]
    assert book.settled(77, 1)
    assert not book.active
    assert not book.settled(77, 1)


def test_queue_lost(book: LeaseBook, numbers: RequestNumbers) -> None:
    """Nothing of the old life is said to the new one; numbers go on."""
    number = book.request()
    book.granted(book.request(), 77, 10)
    book.queue_lost()
    assert not book.active
    assert not book.granted(number, 78, 5)
    assert book.request() == 3
    assert numbers.sent == 3
