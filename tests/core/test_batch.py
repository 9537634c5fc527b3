"""Batches, and the parts of them that a lease ships."""

from array import array

import pytest

from daskqueue_core.batch import (
    PLAIN_OPTIONS,
    SUSPECT_RESENT,
    Batch,
    Keep,
    Kind,
    OnDuplicate,
    Part,
    PutOptions,
    lengths_column,
    merge_runs,
    times_column,
    times_of,
)

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
    assert (batch.priority, batch.ready_at, batch.expires_at, batch.keys, batch.tags) == (0, 0, 0, (), ())
    assert (batch.control, batch.ready_ats, batch.on_duplicate, batch.max_crashes) == (b"", b"", OnDuplicate.RETURN, 3)


def test_lengths_column() -> None:
    """Four bytes a message."""
    assert lengths_column(BODIES) == array("I", [1, 0, 3, 2]).tobytes()
    assert lengths_column([]) == b""


def test_nbytes() -> None:
    """Body, lengths and what is shared."""
    assert Batch(3, b"block", shared=b"function").nbytes == 13
    assert singles(*BODIES).nbytes == 6 + 16


def test_nbytes_of_columns() -> None:
    """Keys, times and control are held with the payload."""
    batch = Batch(2, b"block", control=b"1234", ready_ats=times_column([1, 2]), keys=("a", "bcd"))
    assert batch.nbytes == 5 + 4 + 16 + 4


def test_a_column_of_times() -> None:
    """Eight bytes each, little-endian, and back."""
    column = times_column([1, 2**63])
    assert column == bytes([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128])
    assert list(times_of(column)) == [1, 2**63]


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


@pytest.mark.parametrize("batch", [Batch(4, b"block"), singles(*BODIES)])
def test_cut_of_columns(batch: Batch) -> None:
    """Times and keys are cut with the messages, other options stay."""
    times = times_column([5, 6, 7, 8])
    cut = batch._replace(ready_ats=times, keys=("a", "b", "c", "d"), priority=3, tags=("t",), control=b"c").cut(1, 3)
    assert (list(times_of(cut.ready_ats)), cut.keys) == ([6, 7], ("b", "c"))
    assert (cut.priority, cut.tags, cut.control) == (3, ("t",), b"c")


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


@pytest.mark.parametrize("batch", [Batch(4, b"block"), singles(*BODIES)])
def test_attempts_and_names_of_a_part_in_two(batch: Batch) -> None:
    """Each side has its own; without attempts there are none to be cut."""
    part = part_of(batch)._replace(attempts=b"\0\1\2\3", first=70, keys=("a", "b", "c", "d"), client=9, control=b"c")
    first, rest = part.cut(1)
    assert (first.attempts, first.keys, first.first, first.client) == (b"\0", ("a",), 70, 9)
    assert (rest.attempts, rest.keys, rest.first, rest.control) == (b"\1\2\3", ("b", "c", "d"), 71, b"c")
    assert part_of(batch).cut(2)[1].attempts == b""


def test_options_of_a_plain_put() -> None:
    """Made once."""
    for kind in Kind:
        assert Batch(1, b"", kind=kind).put_options is PLAIN_OPTIONS[kind]
        assert PutOptions.of([Batch(1, b"a", kind=kind), Batch(2, b"b", kind=kind)]) is PLAIN_OPTIONS[kind]
        assert PLAIN_OPTIONS[kind] == PutOptions(kind, (), 0, 0, False, 0, False, False)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("kind", Kind.CALL, "kind"),
        ("tags", ("a",), "tags"),
        ("priority", 1, "priority"),
        ("ready_at", 1, "ready_at"),
        ("ready_ats", times_column([1]), "timed"),
        ("expires_at", 1, "expires_at"),
        ("keys", ("a",), "keyed"),
        ("resent", SUSPECT_RESENT, "suspect"),
    ],
)
def test_options_that_differ(option: str, value: object, said: str) -> None:
    """The mistake is named."""
    batches = [Batch(1, b""), Batch(1, b"")._replace(**{option: value})]
    with pytest.raises(ValueError, match=f"differ in {said}: "):
        PutOptions.of(batches)
    assert PutOptions.of(batches[1:]) != PutOptions.of(batches[:1])


def test_what_may_differ_within_a_put() -> None:
    """What the ledger does not need to know."""
    other = Batch(1, b"x", control=b"c", max_crashes=9, on_duplicate=OnDuplicate.RAISE, resent=1, client=5)
    assert PutOptions.of([Batch(1, b""), other]) == PLAIN_OPTIONS[Kind.ITEM]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (Batch(0, b""), "at least one message"),
        (Batch(-1, b""), "at least one message"),
        (Batch(1, b"", kind=7), "kind=7"),
        (Batch(1, b"", priority=2**15), "priority=32768"),
        (Batch(1, b"", priority=-(2**15) - 1), "priority=-32769"),
        (Batch(2, b"", keys=("a",)), "1 keys for 2"),
        (Batch(2, b"", ready_ats=times_column([1])), "8 bytes of ready_ats for 2"),
    ],
)
def test_what_cannot_be_put(batch: Batch, said: str) -> None:
    """Each says what and how much."""
    with pytest.raises(ValueError, match=said):
        PutOptions.of([batch])
    with pytest.raises(ValueError, match="at least one batch"):
        PutOptions.of([])


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
