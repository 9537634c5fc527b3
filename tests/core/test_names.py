"""Which message a client's number means."""

from daskqueue_core.batch import Batch, Keep
from daskqueue_core.names import Names
from daskqueue_core.payloads import Entry


def entry(base: int, first: int, count: int, client: int = 1) -> Entry:
    """A batch in the queue."""
    return Entry(base, Batch(count, b"", client=client, first=first, keep=Keep.STREAM), 0, 0)


def named(*entries: Entry) -> Names:
    """These are known."""
    names = Names()
    for each in entries:
        names.add(each)
    return names


def test_any_number_of_a_batch() -> None:
    """Not only its first; each client has its own."""
    names = named(entry(0, 100, 10), entry(10, 200, 5), entry(15, 100, 3, client=2))
    assert [names.find(1, number) for number in (99, 100, 109, 110, 204, 205)] == [None, 0, 9, None, 14, None]
    assert [names.find(2, number) for number in (100, 103)] == [15, None]
    assert names.find(3, 100) is None


def test_batches_in_any_order() -> None:
    """A client's puts to several queues, put again in another order."""
    names = named(entry(0, 50, 5), entry(5, 10, 5), entry(10, 30, 5))
    assert [names.find(1, number) for number in (10, 34, 52)] == [5, 14, 2]


def test_a_range_over_batches() -> None:
    """What is known of it, in order."""
    names = named(entry(0, 10, 5), entry(5, 15, 5), entry(10, 30, 5))
    assert names.runs(1, 12, 32) == [(2, 5), (5, 10), (10, 12)]
    assert names.runs(1, 20, 30) == []
    assert names.runs(1, 12, 12) == []


def test_a_long_batch_before_short_ones() -> None:
    """Is found behind them."""
    names = named(entry(0, 0, 1_000), entry(1_000, 500, 2), entry(1_002, 600, 2))
    assert [names.find(1, number) for number in (500, 700, 999)] == [1_000, 700, 999]


def test_a_copy_takes_the_name() -> None:
    """What was put again under another producer; the old one's end does not take it away."""
    old, new = entry(0, 10, 5), entry(5, 10, 5)
    names = named(old, new)
    assert names.find(1, 12) == 7
    names.drop(old)
    assert names.find(1, 12) == 7
    names.drop(new)
    assert names.find(1, 12) is None
    names.drop(new)


def test_numbers_that_were_given() -> None:
    """Up to the highest one, until the client is gone and nothing of it is known."""
    last = entry(0, 10, 5)
    names = named(last)
    assert [names.was_given(1, number) for number in (0, 14, 15)] == [True, True, False]
    names.leave(1)
    names.drop(last)
    assert names.was_given(1, 14)
    names.leave(1)
    names.leave(2)
    assert not names.was_given(1, 14)


def test_the_index_is_tidied() -> None:
    """Batches that are over do not stay in it for ever."""
    entries = [entry(n, n, 1) for n in range(1_000)]
    names = named(*entries)
    for each in entries[:-1]:
        names.drop(each)
    assert len(names._clients[1].firsts) < 100
    assert names.find(1, 999) == 999
    names.clear()
    assert names.find(1, 999) is None
