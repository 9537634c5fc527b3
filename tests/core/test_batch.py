"""Batches, and the parts of them that a lease ships."""

from array import array

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, Part, lengths_column, merge_runs

BODIES = [b"a", b"", b"ccc", b"dd"]


def singles(*bodies: bytes, **options: object) -> Batch:
    """A batch of singles."""
    return Batch(len(bodies), b"".join(bodies), lengths_column(list(bodies)))._replace(**options)


def part_of(batch: Batch, start: int = 100) -> Part:
    """The whole batch as a part, its first message numbered `start`."""
    count = batch.count
    return Part(start, start + count, start, batch.offset, batch.body, batch.lengths, b"", batch.kind, b"f")


def test_defaults() -> None:
    """A batch is items that nobody reports back."""
    batch = Batch(3, b"block")
    assert (batch.kind, batch.keep, batch.client, batch.offset, batch.resent) == (Kind.ITEM, Keep.NONE, 0, 0, 0)


def test_lengths_column() -> None:
    """Four bytes a message."""
    assert lengths_column(BODIES) == array("I", [1, 0, 3, 2]).tobytes()
    assert lengths_column([]) == b""


def test_nbytes() -> None:
    """Body, lengths and what is shared."""
    assert Batch(3, b"block", shared=b"function").nbytes == 13
    assert singles(*BODIES).nbytes == 6 + 16


def test_ends() -> None:
    """Where each single ends in the body."""
    assert list(singles(*BODIES).ends()) == [1, 1, 4, 6]
    assert list(Batch(3, b"block").ends()) == []


def test_the_ends_of_gigabytes() -> None:
    """Positions in a body may need more than the 32 bits of a length."""
    batch = Batch(2, b"", array("I", [2**32 - 1, 2**32 - 1]).tobytes())
    assert list(batch.ends()) == [2**32 - 1, 2**33 - 2]


def test_cut_of_everything() -> None:
    """Costs nothing."""
    batch = singles(*BODIES)
    assert batch.cut(0, 4) is batch


def test_cut_of_a_block() -> None:
    """The block stays whole; the client's number and the position in it move on."""
    cut = Batch(10, b"block", first=50, offset=5).cut(2, 6)
    assert (cut.count, cut.body, cut.first, cut.offset) == (4, b"block", 52, 7)
    again = cut.cut(1, 3)
    assert (again.count, again.first, again.offset) == (2, 53, 8)


@pytest.mark.parametrize(("lo", "hi"), [(0, 1), (0, 2), (1, 2), (1, 4), (2, 3), (3, 4)])
def test_cut_of_singles(lo: int, hi: int) -> None:
    """Only their bodies are left, as a view."""
    cut = singles(*BODIES, first=50, kind=Kind.CALL).cut(lo, hi)
    assert (cut.count, cut.first, cut.kind) == (hi - lo, 50 + lo, Kind.CALL)
    assert [bytes(body) for body in part_of(cut).bodies()] == BODIES[lo:hi]
    assert isinstance(cut.body, memoryview)


def test_a_cut_can_be_cut() -> None:
    """Views of views."""
    cut = singles(*BODIES).cut(1, 4).cut(1, 3)
    assert [bytes(body) for body in part_of(cut).bodies()] == BODIES[2:4]


def test_bodies_are_views() -> None:
    """One for each message, without a copy."""
    batch = singles(*BODIES)
    bodies = part_of(batch).bodies()
    assert [bytes(body) for body in bodies] == BODIES
    assert all(body.obj is batch.body for body in bodies)


@pytest.mark.parametrize("count", range(5))
def test_a_part_of_singles_in_two(count: int) -> None:
    """Each side has its own bodies."""
    first, rest = part_of(singles(*BODIES)).cut(count)
    assert (first.start, first.stop, rest.start, rest.stop) == (100, 100 + count, 100 + count, 104)
    assert [bytes(body) for body in first.bodies()] == BODIES[:count]
    assert [bytes(body) for body in rest.bodies()] == BODIES[count:]
    assert first.base == rest.base == 100


def test_a_part_of_a_block_in_two() -> None:
    """Both sides have the block, the second begins later in it."""
    first, rest = part_of(Batch(10, b"block", offset=20)).cut(4)
    assert (first.count, first.offset, first.body) == (4, 20, b"block")
    assert (rest.count, rest.offset, rest.body) == (6, 24, b"block")


def test_a_part_without_its_body_in_two() -> None:
    """A block that the consumer has is cut like any other."""
    part = part_of(Batch(10, b"block"))._replace(body=None)
    first, rest = part.cut(3)
    assert (first.body, rest.body, first.count, rest.offset) == (None, None, 3, 3)
    assert part.bodies() == []


def test_merge_runs() -> None:
    """Adjacent runs are joined, whatever lies apart keeps its order."""
    assert merge_runs([]) == ()
    assert merge_runs([(0, 2), (2, 3), (5, 6), (6, 9)]) == ((0, 3), (5, 9))
    assert merge_runs([(5, 9), (0, 2), (2, 5)]) == ((5, 9), (0, 5))
