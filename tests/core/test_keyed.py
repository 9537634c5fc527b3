"""What a put under keys becomes."""

import pytest

from daskqueue_core.batch import Batch, Keep, OnDuplicate
from daskqueue_core.keyed import Sifted, sift
from daskqueue_core.mail import Address

RETURN, RAISE, REPLACE = OnDuplicate.RETURN, OnDuplicate.RAISE, OnDuplicate.REPLACE


def keyed(keys: str, way: int = RETURN, keep: int = Keep.KEEP, first: int = 100, client: int = 1) -> Batch:
    """A block with a key for each message."""
    named = {"keys": tuple(keys), "client": client, "first": first}
    return Batch(len(keys), b"block", on_duplicate=way, keep=keep, **named)  # type: ignore[arg-type]


def sifted(*batches: Batch, **taken: int) -> Sifted:
    """With these keys in use."""
    return sift(batches, taken.get)


def left(result: Sifted) -> list[tuple[int, str, int]]:
    """What is put: the client's first number, the keys, the place in the block."""
    return [(batch.first, "".join(batch.keys), batch.offset) for batch in result.batches]


def test_nothing_in_use() -> None:
    """The very batches are put."""
    batches = keyed("ab"), keyed("cd")
    result = sifted(*batches)
    assert result == Sifted(batches, (), (), (), ())
    assert all(mine is given for mine, given in zip(result.batches, batches, strict=True))
    assert result.total == 4


def test_return() -> None:
    """The others are put, where they were in the block."""
    result = sifted(keyed("abcd"), b=7, c=8)
    assert left(result) == [(100, "a", 0), (103, "d", 3)]
    assert result.follow == (("b", Address(1, 100, 1)), ("c", Address(1, 100, 2)))
    assert (result.total, result.duplicates, result.replaced) == (2, (), ())


def test_raise() -> None:
    """They are refused."""
    result = sifted(keyed("ab", RAISE), a=7)
    assert (left(result), result.duplicates, result.follow) == ([(101, "b", 1)], (Address(1, 100, 0),), ())


def test_replace() -> None:
    """All are put, once the older ones have made way."""
    result = sifted(keyed("ab", REPLACE), b=7)
    assert (left(result), result.replaced, result.follow) == ([(100, "ab", 0)], (7,), ())


def test_all_in_use() -> None:
    """Nothing is put."""
    assert sifted(keyed("ab"), a=7, b=8).batches == ()


def test_twice_in_one_put() -> None:
    """Over batches, each in its own way: the last that replaces counts, until somebody else comes."""
    result = sifted(keyed("xx"), keyed("x", RAISE, first=200), keyed("xx", REPLACE, first=300), keyed("x", first=400))
    assert left(result) == [(301, "x", 1)]
    assert result.follow == (("x", Address(1, 100, 1)), ("x", Address(1, 400, 0)))
    assert result.duplicates == (Address(1, 200, 0),)
    assert result.overtaken == (Address(1, 100, 0), Address(1, 300, 0))
    assert result.replaced == ()


def test_replaced_twice_in_one_put() -> None:
    """The one in use makes way once."""
    result = sifted(keyed("aa", REPLACE), a=7)
    assert (left(result), result.replaced, result.overtaken) == ([(101, "a", 1)], (7,), (Address(1, 100, 0),))


@pytest.mark.parametrize("way", OnDuplicate)
def test_nobody_waits(way: OnDuplicate) -> None:
    """What nobody is to hear of is not addressed."""
    result = sifted(keyed("aa", way, Keep.NONE), a=7)
    assert (result.follow, result.duplicates, result.overtaken) == ((), (), ())
