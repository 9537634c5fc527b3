"""Every event of core as records and back, with what rides along."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column, single, times_column
from daskqueue_core.events import (
    Acked,
    Blame,
    CancelAsked,
    Cancelled,
    Delivered,
    Event,
    Expired,
    Failed,
    Forgotten,
    Purged,
    Put,
    Reason,
    Requeued,
    Returned,
)
from daskqueue_core.outcomes import Failure, FailureReason, Report
from daskqueue_core.runs import clean
from daskqueue_storage import records
from daskqueue_storage.body import Draft, Ext
from daskqueue_storage.body import draft as draft_one_by_one
from daskqueue_storage.format import MAX_COUNT, RecordHeader, RecordType
from daskqueue_storage.records import (
    INLINE_SHARED,
    draft_copy,
    draft_events,
    draft_puts,
    event_of,
    payload_of,
    put_of,
)

u64 = st.integers(0, 2**64 - 1)
times = st.integers(0, 2**63)
texts = st.text(max_size=300).filter(lambda text: text.isprintable())
blobs = st.binary(max_size=50)


def written(draft: Draft, base: int | None = None) -> tuple[RecordHeader, bytes]:
    """A draft as it is read again."""
    body = b"".join(draft.parts)
    assert len(body) == draft.blen
    at = draft.base if base is None else base
    small = (draft.type, draft.flags, draft.small, draft.count, 64, 1, at, 0, 1)
    return RecordHeader(*small, draft.blen, draft.bcrc, draft.aux), body


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Disjoint, in any order."""
    bounds = sorted(draw(st.sets(st.integers(0, 5000), min_size=2, max_size=20)))
    pairs = [(start, stop) for start, stop in zip(bounds[::2], bounds[1::2])]
    return tuple(draw(st.permutations(pairs)))


@st.composite
def batches(draw: st.DrawFn, *, timed: bool, keyed: bool) -> Batch:
    """A batch with everything."""
    count = draw(st.integers(1, 6))
    bodies = draw(st.lists(blobs, min_size=count, max_size=count)) if draw(st.booleans()) else [b"same"] * count
    block = draw(st.booleans())
    return Batch(
        count,
        draw(blobs) if block else b"".join(bodies),
        b"" if block else lengths_column(bodies),
        shared=draw(blobs) * draw(st.sampled_from([1, 1, 1 + INLINE_SHARED])),
        kind=draw(st.sampled_from(Kind)),
        function=draw(blobs),
        client=draw(u64),
        first=draw(times),
        keep=draw(st.sampled_from(Keep)),
        offset=draw(st.integers(0, 9)),
        resent=draw(st.integers(0, 9)),
        control=draw(blobs),
        ready_ats=times_column(draw(st.lists(times, min_size=count, max_size=count))) if timed else b"",
        keys=tuple(draw(st.lists(texts, min_size=count, max_size=count))) if keyed else (),
        tags=tuple(sorted(draw(st.sets(texts, max_size=2)))),
        max_crashes=draw(st.integers(0, 9)),
    )


@given(st.data(), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_puts(data: st.DataObject, timed: bool, keyed: bool, numbered: bool) -> None:
    """The event, and each batch with its payload: also those of a copy."""
    parts = data.draw(st.lists(batches(timed=timed, keyed=keyed), min_size=1, max_size=3))
    priority, expires = data.draw(st.integers(-5, 5)), data.draw(times)
    parts = [part._replace(priority=priority, expires_at=expires) for part in parts]
    event = Put(
        data.draw(times),
        data.draw(times),
        sum(part.count for part in parts),
        data.draw(u64) if numbered else None,
        data.draw(times) if numbered else 0,
        priority,
        expires_at=expires,
        suspect=data.draw(st.booleans()),
    )
    drafts = draft_puts(event, parts)
    assert len(drafts) == len(parts)
    base = event.base
    for at, (draft, part) in enumerate(zip(drafts, parts)):
        header, body = written(draft, base)
        for again, copied in ((header, body), written(draft_copy(header, body))):
            found = put_of(again, copied)
            content, lengths = payload_of(again, copied, found.sizes)
            assert found.batch._replace(body=bytes(content), lengths=lengths) == part
            assert (found.base, found.put_at, found.suspect) == (base, event.time, event.suspect)
            assert found.producer == ((event.producer, event.number) if numbered else None)
            assert (found.following, found.goes_on) == (len(parts) - 1 - at, at > 0)
        base += part.count


@given(st.data(), texts | st.just("local"), times, st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_short_way_writes_the_same(data: st.DataObject, owner: str, time: int, flag: bool) -> None:
    """What comes with every message is packed in one go: byte for byte what the attributes one by one would be."""
    start, lease, before, number = data.draw(times), data.draw(u64), data.draw(u64), data.draw(u64)
    one = ((start, start + data.draw(st.integers(1, 2000))),)
    puts = before.to_bytes(8, "little")
    ext = Ext(lease=lease, deadline=time + 5, owner=owner, put_at=time, policy=puts + number.to_bytes(8, "little"))
    delivered = Delivered(time, one, lease, owner, flag, time + 5, number)
    expected = draft_one_by_one(RecordType.DELIVERED, runs=one, ordered=True, ext=ext, small=flag)
    assert draft_events(delivered, None, before) == [expected]
    ext = Ext(lease=lease, put_at=time, policy=puts)
    assert draft_events(Acked(time, one, lease, flag), None, before) == [
        draft_one_by_one(RecordType.ACKED, runs=one, ext=ext, small=flag)
    ]
    part = data.draw(batches(timed=False, keyed=False))
    put = Put(time, start, part.count, number if flag else None, before if flag else 0, suspect=flag)
    with pytest.MonkeyPatch.context() as patch:
        short = draft_puts(put, [part])
        patch.setattr(records, "SHORT", 0)
        assert [written(each) for each in short] == [written(each) for each in draft_puts(put, [part])]


@given(st.binary(max_size=300), times, st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_single_is_written_as_others_are(body: bytes, time: int, as_view: bool) -> None:
    """One message that asks for nothing special has a way of its own, to the same bytes."""
    batch = single(memoryview(body) if as_view else body)
    assert batch == Batch(1, body, lengths_column([body]))
    put = Put(time, 7, 1)
    [short] = draft_puts(put, [batch])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "is_plain", False)
        [long] = draft_puts(put, [batch])
    assert written(short) == written(long)
    [numbered] = draft_puts(put._replace(producer=5, number=6), [batch])
    assert put_of(*written(numbered, 7)).producer == (5, 6)


def test_a_put_without_messages() -> None:
    """It says that the number of a producer is used."""
    [draft] = draft_puts(Put(5, 7, 0, 9, 3), ())
    found = put_of(*written(draft, 7))
    assert (found.batch.count, found.producer, found.base, found.put_at) == (0, (9, 3), 7, 5)


@st.composite
def events(draw: st.DrawFn) -> tuple[Event, Any]:
    """Any that is no put, with what rides along."""
    time, of, lease = draw(times), draw(runs()), draw(u64)
    kind = draw(
        st.sampled_from(
            [Delivered, Acked, Returned, Failed, CancelAsked, Cancelled, Expired, Requeued, Purged, Forgotten]
        )
    )
    if kind is Delivered:
        return Delivered(time, of, lease, draw(texts), draw(st.booleans()), draw(times), draw(u64)), None
    if kind is Acked:
        report = draw(
            st.none() | st.builds(Report, st.just(3), st.just(5003), st.binary(min_size=1, max_size=50), st.just(()))
        )
        return Acked(time, of, lease, draw(st.booleans())), report
    if kind is Returned:
        reason, blame = draw(st.sampled_from(Reason)), draw(st.sampled_from(Blame))
        return Returned(time, of, lease, reason, blame, draw(times)), None
    if kind is Failed:
        seqs = [seq for start, stop in of for seq in range(start, stop)][:5]
        reasons = st.sampled_from(FailureReason)
        failure = st.builds(Failure, st.just(0), blobs, texts, st.just(-1), blobs, reasons)
        failures = draw(st.none() | st.fixed_dictionaries(dict.fromkeys(seqs, failure)))
        return Failed(time, of, lease, draw(st.sampled_from(Reason))), failures
    if kind is Cancelled:
        return Cancelled(time, of, lease), None
    if kind is Expired:
        return Expired(time, of, draw(u64), draw(st.booleans())), None
    return kind(time, of), None


@given(events())
@settings(max_examples=100, deadline=None)
def test_all_other_events(pair: tuple[Event, Any]) -> None:
    """As they were; the order of runs where it says something, which is in a delivery."""
    event, ride = pair
    [draft] = draft_events(event, ride, 77)
    again, rode, puts = event_of(*written(draft))
    assert puts == 77
    assert not isinstance(event, Put)
    if not isinstance(event, Delivered):
        assert not isinstance(again, Put)
        again, event = again._replace(runs=clean(again.runs)), event._replace(runs=clean(event.runs))
    assert again == event
    assert rode == ride


def test_more_messages_than_a_record_holds() -> None:
    """They become several records, each of them whole."""
    event = CancelAsked(1, ((0, 10), (20, 3 * MAX_COUNT)))
    pieces = [event_of(*written(draft))[0] for draft in draft_events(event, None, 0)]
    assert clean([run for piece in pieces if isinstance(piece, CancelAsked) for run in piece.runs]) == list(event.runs)
    assert len(pieces) == 3


def test_what_is_no_event() -> None:
    """A record of another type, and a reason nobody has written."""
    [draft] = draft_events(Failed(1, ((0, 1),), 1, Reason.RETRY), None, 0)
    header, body = written(draft)
    with pytest.raises(ValueError, match="no reason"):
        event_of(header._replace(small=99), body)
    with pytest.raises(ValueError, match="is no event"):
        event_of(header._replace(type=RecordType.ROLL), body)
