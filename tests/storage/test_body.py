"""Attributes, ids, keys, lengths, payloads: round trips of all, the smallest form of each, and garbage that says so."""

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskqueue_storage.body import Draft, Ext, draft, draft_messages, parse, payloads_of
from daskqueue_storage.format import Flag, IdShape, RecordHeader, RecordType

u16, u32, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def maybe(strategy):
    """The value, or its absence."""
    return st.none() | strategy


exts = st.builds(
    Ext,
    ready_at=maybe(u64),
    expires_at=maybe(u64),
    producer=maybe(st.tuples(u64, u64)),
    lease=maybe(u64),
    deadline=maybe(u64),
    owner=maybe(st.text(max_size=300)),
    attempts=maybe(st.tuples(u16, u16)),
    put_at=maybe(u64),
    block=maybe(st.tuples(u64, u32)),
    client=maybe(st.tuples(u64, u64)),
    policy=maybe(st.binary(max_size=1000)),
)


@st.composite
def some_runs(draw):
    """Disjoint runs, ascending, not touching."""
    at = draw(st.integers(0, 2**40))
    runs = []
    for gap, length in draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=20)):
        runs.append((at + gap, at + gap + length))
        at += gap + length
    return runs


def header_of(made: Draft) -> RecordHeader:
    """The header the writer would give it."""
    return RecordHeader(
        made.type, made.flags, made.small, made.count, 64, 1, made.base, 1, 1, made.blen, made.bcrc, made.aux
    )


def body_of(made: Draft) -> bytes:
    """Its body; length and checksum are what the draft says."""
    body = b"".join(made.parts)
    assert (len(body), crc32(body)) == (made.blen, made.bcrc)
    return body


@given(some_runs(), exts, st.booleans(), st.sampled_from(["none", "one each", "block"]), st.randoms())
def test_bodies_round_trip(runs, ext, keyed, what, random) -> None:
    """Whatever is put in comes out, in every combination."""
    count = sum(stop - start for start, stop in runs)
    keys = tuple(f"k\N{EURO SIGN}{n}" for n in range(count)) if keyed else ()
    payloads = [random.randbytes(random.choice([3, 3, 3, 0, 9])) for _ in range(count)] if what == "one each" else None
    block = b"all of them" if what == "block" else None
    made = draft(RecordType.ACKED, runs=runs, ext=ext, keys=keys, payloads=payloads, block=block, small=-3)
    found = parse(header_of(made), body_of(made))
    assert (found.ext, list(found.runs), found.keys) == (ext, runs, keys)
    assert found.payloads == ([block] if what == "block" else payloads or [])
    assert (made.small, made.count) == (-3, count)


@given(st.lists(st.binary(max_size=5), max_size=30) | st.lists(st.binary(min_size=2, max_size=2), max_size=30))
def test_plain_batches_round_trip(batch) -> None:
    """The fast path says the same as the general one."""
    made = draft_messages(batch)
    assert payloads_of(header_of(made), body_of(made)) == batch
    assert bool(made.flags & Flag.FIXED) == (len({len(item) for item in batch}) < 2)
    general = draft(RecordType.PUT, runs=[(0, len(batch))] if batch else [], payloads=batch)
    assert general._replace(parts=()) == made._replace(parts=())
    assert body_of(general) == body_of(made)


def test_the_lease_order_survives() -> None:
    """Ordered runs keep their order and never become a bitmap; others take the smallest form."""
    runs = [(900, 903), (5, 6), (7, 8), (1, 2)]
    made = draft(RecordType.DELIVERED, runs=runs, ordered=True)
    assert (made.flags >> 4 & 3, made.aux, made.base) == (IdShape.RANGES, 4, 1)
    assert list(parse(header_of(made), body_of(made)).runs) == runs
    scattered = [(n, n + 1) for n in range(0, 400, 2)]
    made = draft(RecordType.ACKED, runs=scattered)
    assert (made.flags >> 4 & 3, made.blen) == (IdShape.BITMAP, 50)
    assert list(parse(header_of(made), body_of(made)).runs) == scattered
    assert draft(RecordType.ACKED, runs=[(7, 1007)]).blen == 0


def test_ids_too_far_apart_are_refused() -> None:
    """Deltas have 32 bits."""
    with pytest.raises(ValueError, match="split it"):
        draft(RecordType.ACKED, runs=[(0, 1), (2**32, 2**32 + 1)])


def test_a_message_is_any_bytes() -> None:
    """bytearrays and memoryviews too, those with wide items as the bytes they are."""
    wide = memoryview(bytes(range(8))).cast("I")
    batch = [bytearray(b"ab"), memoryview(b"cd"), wide]
    made = draft_messages(batch)
    assert payloads_of(header_of(made), body_of(made)) == [b"ab", b"cd", bytes(range(8))]
    with pytest.raises(TypeError, match="bytes-like"):
        draft_messages(["text"])


def test_limits_of_keys_and_attributes() -> None:
    """A key of 1 KiB, a key for each message, attributes of 64 KiB: one more is an error."""
    draft(RecordType.PUT, runs=[(0, 1)], keys=["k" * 1024], payloads=[b""])
    with pytest.raises(ValueError, match="1025 bytes"):
        draft(RecordType.PUT, runs=[(0, 1)], keys=["k" * 1025], payloads=[b""])
    with pytest.raises(ValueError, match="2 keys for 1"):
        draft(RecordType.PUT, runs=[(0, 1)], keys=["a", "b"], payloads=[b""])
    with pytest.raises(ValueError, match="attributes"):
        draft(RecordType.PUT, runs=[(0, 1)], ext=Ext(policy=bytes(66_000)))
    with pytest.raises(ValueError, match="2 payloads for 1"):
        draft(RecordType.PUT, runs=[(0, 1)], payloads=[b"", b""])


def test_unknown_attributes_are_skipped() -> None:
    """A tag of tomorrow does not hide those of today."""
    made = draft(RecordType.RETURNED, runs=[(1, 2)], ext=Ext(lease=5))
    item = bytes((99, 3)) + b"new"
    body = (24).to_bytes(2, "little") + item + made.parts[0][2:12] + bytes(7)
    assert parse(header_of(made), body).ext == Ext(lease=5)


def test_an_unknown_type_can_be_ignorable() -> None:
    """The writer of a new type says whether old readers may skip it."""
    assert draft(RecordType.FORGOTTEN, ignorable=True).flags & Flag.IGNORABLE


@given(st.binary(max_size=80), st.integers(0, 255), st.integers(0, 2**20), st.integers(0, 200))
def test_garbage_is_a_value_error(body, flags, count, aux) -> None:
    """A body that makes no sense raises ValueError (UnicodeDecodeError is one), nothing else."""
    header = RecordHeader(RecordType.PUT, flags, 0, count, 64, 0, 0, 0, 0, len(body), 0, aux)
    for read in (parse, payloads_of):
        try:
            read(header, body)
        except ValueError:
            pass
