"""How calls are cut into blocks: by number, bytes and the time that an iterable takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from daskqueue.client import encoder
from daskqueue.client.encoder import Calls, encode_calls, item_batch
from daskqueue_core.batch import Keep


def same(value: Any) -> Any:
    """What it is given."""
    return value


def counts(calls: Calls, **limits: Any) -> list[int]:
    """The sizes of the blocks."""
    return [batch.count for batch in encode_calls(same, calls, client=1, keep=Keep.STREAM, **limits)]


@pytest.mark.parametrize(
    ("item", "most"),
    [(7, 4000), (b"x" * 20, 1400), (b"x" * 100, 1000), (b"x" * 900, 1000), (b"x" * 100_000, 11), (b"x" * 3_000_000, 1)],
    ids=["int", "20 B", "100 B", "900 B", "100 KB", "3 MB"],
)
def test_the_smaller_the_more(item: Any, most: int) -> None:
    """Four thousand integers, a thousand of what is larger, 1 MiB of what is large; nothing is left out."""
    number = min(20_000, 40 * most)
    sizes = counts(Calls([item if type(item) is int else bytes(item) + b"%05d" % at for at in range(number)]))
    assert sum(sizes) == number
    assert 0.75 * most <= max(sizes[1:]) <= most


def test_most_and_limit() -> None:
    """The caller's own bounds hold."""
    assert max(counts(Calls(range(10_000)), most=300)) == 300
    calls = Calls(iter(range(10_000)))
    assert sum(counts(calls, limit=5_000)) == 5_000
    assert sum(counts(calls)) == 5_000, "the rest is still there"


def test_one_that_is_larger_than_the_last_ones() -> None:
    """A block that came out much too large is cut once more."""
    sizes = counts(Calls([*range(5_000), *[b"x" * 100_000 + b"%05d" % at for at in range(1_000)]]))
    assert sum(sizes) == 6_000
    assert max(sizes[-10:]) <= 42


def test_a_slow_iterable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes slowly leaves about twenty times a second; what comes fast again travels together again."""
    now = 0.0

    def slowly() -> Iterator[int]:
        nonlocal now
        for number in range(3_000):
            now += 0.01 if number < 1_000 else 0.0
            yield number

    monkeypatch.setattr("time.perf_counter", lambda: now)
    sizes = counts(Calls(slowly()))
    assert sum(sizes) == 3_000
    assert sizes[0] == encoder.FIRST_CALLS, "of which nothing is known yet"
    assert set(sizes[1:150]) <= {4, 5}
    assert max(sizes) > 1_000


def test_an_iterable_that_takes_seconds_for_each() -> None:
    """One at a time, and never none."""
    times = iter(range(0, 1_000_000, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: next(times))
        assert counts(Calls(iter(range(20)))) == [16, 1, 1, 1, 1]


def test_items() -> None:
    """A thousand at most, whatever their size, and 1 MiB."""
    assert [batch.count for batch in item_batch(range(2_500))] == [1_000, 1_000, 500]
    assert [batch.count for batch in item_batch([bytes(400_000)] * 5)] == [3, 2]
