"""Where payloads are, and when they go."""

import pytest

from daskqueue_core.batch import Batch, Keep, lengths_column
from daskqueue_core.payloads import Entry, Payloads

BODIES = [b"aa", b"", b"cccc", b"d"]


def block(count: int, **options: object) -> Batch:
    """A block of one byte for each message."""
    return Batch(count, b"x" * count)._replace(**options)


def singles(**options: object) -> Batch:
    """Four singles."""
    return Batch(4, b"".join(BODIES), lengths_column(BODIES))._replace(**options)


@pytest.fixture
def payloads() -> Payloads:
    """Three entries: 0 to 10, 10 to 14, 14 to 20."""
    new = Payloads()
    new.add(0, block(10, client=1, first=100, keep=Keep.STREAM), 7, 0)
    new.add(
        10, singles(client=1, first=200, keep=Keep.KEEP, shared=b"S", control=b"C", keys=("a", "b", "c", "d")), 8, 1
    )
    new.add(14, block(6), 9, 0)
    return new


def at(payloads: Payloads, seq: int) -> Entry:
    """The entry of a message, which there must be."""
    entry = payloads.find(seq)
    assert entry is not None
    return entry


def test_find(payloads: Payloads) -> None:
    """By any of its messages, in any order."""
    assert [at(payloads, seq).base for seq in (0, 9, 10, 13, 14, 19, 5)] == [0, 0, 10, 10, 14, 14, 0]
    assert payloads.find(20) is None
    assert payloads.find(-1) is None


def test_a_message_that_must_be_there(payloads: Payloads) -> None:
    """Anything else is a broken invariant, and says which message."""
    with pytest.raises(AssertionError, match="message 20 has no batch"):
        payloads.entry(20)


def test_pieces(payloads: Payloads) -> None:
    """Cut where entries begin and end; what nothing is known of stands alone."""
    payloads.free([(10, 14)], gone=True)
    assert [(entry and entry.base, start, stop) for entry, start, stop in payloads.pieces([(8, 16), (18, 25)])] == [
        (0, 8, 10),
        (None, 10, 14),
        (14, 14, 16),
        (14, 18, 20),
        (None, 20, 25),
    ]


def test_by_entry(payloads: Payloads) -> None:
    """The runs of each entry together."""
    runs = ((1, 2), (4, 5), (8, 12), (13, 15))
    found = [(entry.base, of_entry) for entry, of_entry in payloads.by_entry(runs)]
    assert found == [(0, ((1, 2), (4, 5), (8, 10))), (10, ((10, 12), (13, 14))), (14, ((14, 15),))]
    assert payloads.by_entry(((20, 22),)) == []


def test_a_part_of_singles(payloads: Payloads) -> None:
    """Only its own bodies, keys and numbers, with what all share."""
    part = at(payloads, 11).part(11, 13, (), b"\1\2")
    assert [bytes(body) for body in part.bodies()] == BODIES[1:3]
    assert (part.start, part.stop, part.base, part.first, part.client) == (11, 13, 10, 201, 1)
    assert (part.keys, part.attempts, part.shared, part.control) == (("b", "c"), b"\1\2", b"S", b"C")


def test_a_part_of_a_block(payloads: Payloads) -> None:
    """All of it, unless the consumer has it."""
    entry = at(payloads, 0)
    assert entry.part(3, 5, ()).body == b"x" * 10
    part = entry.part(3, 5, {0})
    assert (part.body, part.offset, part.count) == (None, 3, 2)


def test_bytes_go_with_the_last_message(payloads: Payloads) -> None:
    """Not before, and batch by batch."""
    before = payloads.nbytes
    assert payloads.free([(0, 9)], gone=True) == []
    assert (payloads.nbytes, payloads.unfinished) == (before, {0: 7, 1: 4})
    [over] = payloads.free([(9, 10)], gone=True)
    assert (over.base, payloads.find(9)) == (0, None)
    assert payloads.nbytes == before - 10


def test_what_is_kept_has_a_name_but_no_payload(payloads: Payloads) -> None:
    """Until it is forgotten."""
    before, entry = payloads.nbytes, at(payloads, 10)
    assert payloads.free([(10, 14)], gone=False) == []
    assert before - payloads.nbytes == len(b"".join(BODIES)) + 16 + 1 + 1 + 4
    batch = at(payloads, 12).batch
    assert (batch.body, batch.lengths, batch.shared, batch.keys) == (b"", b"", b"", ())
    assert (batch.client, batch.first, batch.count) == (1, 200, 4)
    assert payloads.forget([(10, 13)]) == []
    assert payloads.forget([(13, 14)]) == [entry]
    assert payloads.find(13) is None


def test_what_nobody_keeps_has_no_name_when_it_ended(payloads: Payloads) -> None:
    """Whatever the ledger still knows of it: forgetting it later changes nothing."""
    payloads.free([(0, 4)], gone=False)
    assert payloads.forget([(0, 4)]) == []
    assert len(payloads.free([(4, 10)], gone=False)) == 1


def test_a_dead_letter_with_a_body_pins_nothing(payloads: Payloads) -> None:
    """Its batch is let go without it."""
    payloads.free([(0, 9)], gone=True)
    payloads.bury(at(payloads, 9), 9, b"own")
    assert payloads.nbytes == 6 + (7 + 16 + 2 + 4) + 3
    assert payloads.unfinished == {0: 6, 1: 4}
    [over] = payloads.exhume(9, b"own")
    assert (over.base, payloads.nbytes) == (0, 6 + 29)


def test_a_dead_letter_without_a_body_pins_its_batch(payloads: Payloads) -> None:
    """Until it is gone."""
    payloads.free([(0, 9)], gone=True)
    before = payloads.nbytes
    payloads.bury(at(payloads, 9), 9, None)
    assert payloads.nbytes == before
    assert len(payloads.exhume(9, None)) == 1
    assert payloads.nbytes == before - 10


def test_requeued_with_a_body(payloads: Payloads) -> None:
    """It is found alone, between its neighbours, with all that it had."""
    entry = at(payloads, 11)
    template = entry.template()
    payloads.bury(entry, 11, b"own")
    payloads.requeue(11, template, b"own", "b", 1)
    assert payloads.unfinished == {0: 16, 1: 4}
    assert [(start, stop) for _, start, stop in payloads.pieces([(10, 14)])] == [(10, 11), (11, 12), (12, 14)]
    again = at(payloads, 11)
    part = again.part(11, 12, ())
    assert ([bytes(body) for body in part.bodies()], part.first, part.keys) == ([b"own"], 201, ("b",))
    assert (part.shared, part.control, again.life, again.origin is entry) == (b"S", b"C", 1, True)


def test_requeued_out_of_its_block(payloads: Payloads) -> None:
    """It runs where it was, and the block goes with it."""
    entry = at(payloads, 3)
    payloads.free([(0, 3), (4, 10)], gone=True)
    payloads.bury(entry, 3, None)
    for life in (1, 2):
        payloads.requeue(3, entry.template(), None, None, life)
        part = at(payloads, 3).part(3, 4, ())
        assert (part.body, part.offset, part.first) == (b"x" * 10, 3, 103)
        if life == 1:
            payloads.bury(at(payloads, 3), 3, None)
    before = payloads.nbytes
    [over] = payloads.free([(3, 4)], gone=True)
    assert (over.base, payloads.nbytes) == (0, before - 10)


def test_requeued_and_dead_again(payloads: Payloads) -> None:
    """The template stays that of its batch, though the batch's payload is gone."""
    entry = at(payloads, 12)
    template = entry.template()
    payloads.free([(10, 12), (13, 14)], gone=False)
    payloads.bury(entry, 12, b"one")
    payloads.requeue(12, template, b"one", "c", 1)
    again = at(payloads, 12)
    template = again.template()
    assert again.single(12) == b"one"
    payloads.bury(again, 12, b"three")
    payloads.requeue(12, template, b"three", "c", 2)
    part = at(payloads, 12).part(12, 13, ())
    assert ([bytes(body) for body in part.bodies()], part.first, part.shared) == ([b"three"], 202, b"S")
    assert payloads.nbytes == 16 + 5


def test_own_bytes_of_a_message(payloads: Payloads) -> None:
    """A copy, which pins nothing; a block has none."""
    assert at(payloads, 12).single(12) == b"cccc"
    assert isinstance(at(payloads, 12).single(12), bytes)
    assert at(payloads, 0).single(0) is None


def test_the_index_is_tidied() -> None:
    """Gone entries do not stay in it for ever, nor requeued ones."""
    payloads = Payloads()
    for seq in range(1_000):
        payloads.add(seq, block(1), 0, 0)
    for seq in range(1_000):
        entry = at(payloads, seq)
        payloads.bury(entry, seq, b"x")
        payloads.requeue(seq, entry.template(), b"x", None, 1)
    payloads.free([(0, 990)], gone=True)
    assert len(payloads._bases) < 100
    assert len(payloads._seqs_again) < 100
    assert at(payloads, 995).life == 1
    payloads.clear()
    assert payloads.find(995) is None
