"""Core's events as records, and back: PUT for the log, everything else for the index.

A put is one record for each of its batches, in one go; each says how many follow, so that a put is there as a whole or
not at all. The payload stands in the record as the batch has it: messages with their lengths, or one block. What has a
column of times, or a large `shared`, becomes one block with both in front, and says how long they are.

    PUT policy: offset u64, records that follow u32, sizes of times, shared, lengths, body u32, u8 with bit 0 suspect,
                bit 1 a record of the same put stands before this one, then plain:
                (kind, tags, keep, function, shared, control, resent, max_crashes)

Values of results stand in ACKED, what a consumer said of failures in FAILED (plain rows). Every record has the queue's
own time of the event in its attribute 8, since a queue's clock never steps back and the wall clock may. A record of the
index says in its policy how many messages were put before it (u64; in DELIVERED the request's number follows), so that
both logs are replayed in the order in which things happened.

Not here: where records go, and what events mean. Invariants: `event_of(draft(e)) == e` up to the order of runs where it
says nothing, and what only the living queue needs (stale reports, blobs of attempts that were retried).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

from daskqueue_core.batch import Batch, Buffer, Run
from daskqueue_core.contents import Ride
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
from daskqueue_core.outcomes import Failure, Report
from daskqueue_storage import plain
from daskqueue_storage.body import Contents, Draft, Ext, draft, parse
from daskqueue_storage.format import MAX_COUNT, Flag, RecordHeader, RecordType
from daskqueue_storage.packed import PLACE, SHORT, acked, delivered, put_attributes, single

__all__ = [
    "PutRecord",
    "Sizes",
    "draft_copy",
    "draft_events",
    "draft_packed",
    "draft_puts",
    "event_of",
    "payload_of",
    "put_of",
]

INLINE_SHARED: Final = 8192  # what is larger does not fit the attributes
_U64 = Struct("<Q")
_PAYLOAD_FLAGS: Final = int(Flag.PAYLOADS | Flag.FIXED | Flag.BLOCK)
_EXT: Final = int(Flag.EXT)
_FIXED: Final = int(Flag.PAYLOADS | Flag.FIXED)
_BLOCK: Final = int(Flag.PAYLOADS | Flag.BLOCK)

# The numbers are on disk: add at the end.
_REASONS: Final = (
    Reason.RELEASED,
    Reason.RETRY,
    Reason.UNLISTED,
    Reason.OWNER_LOST,
    Reason.LAPSED,
    Reason.REOPENED,
    Reason.REJECTED,
    Reason.CRASHED,
    Reason.DAMAGED,
    Reason.EARLY_ACK,
)
_NUMBER_OF: Final = {reason: number for number, reason in enumerate(_REASONS)}


class Sizes(NamedTuple):
    """How the end of a PUT's body is cut."""

    times: int
    shared: int
    lengths: int
    body: int


class PutRecord(NamedTuple):
    """A PUT or COPY without its payload."""

    base: int
    batch: Batch  # body and lengths empty; `ready_ats` only if there are some
    sizes: Sizes
    put_at: int
    priority: int
    ready_at: int
    expires_at: int
    producer: tuple[int, int] | None
    suspect: bool
    following: int  # records of the same put behind this one
    goes_on: bool  # and there is one before it


# ------------------------------------------------------------------------------------------------------------- puts


def draft_puts(event: Put, batches: Sequence[Batch]) -> list[Draft]:
    """The records of a put: one for each batch, one without messages if there is none."""
    if not batches:
        return [_draft_put(event, Batch(0, b""), 0)]
    first = batches[0]
    if len(batches) == 1 == first.count and first.lengths and event.producer is None and first.is_plain:
        return [single(event, bytes(first.body))]
    last = len(batches) - 1
    return [_draft_put(event, batch, last - at, goes_on=at > 0) for at, batch in enumerate(batches)]


def _draft_put(event: Put, batch: Batch, following: int, *, goes_on: bool = False) -> Draft:
    is_packed = bool(batch.ready_ats) or len(batch.shared) > INLINE_SHARED
    shared = b"" if is_packed else batch.shared
    lengths, body = batch.lengths, bytes(batch.body)
    times = batch.ready_ats if is_packed else b""
    outside = batch.shared if is_packed else b""
    count, bits = batch.count, event.suspect | goes_on << 1
    place = batch.offset, following, len(times), len(outside), len(lengths), len(body), bits
    rest = _attributes(
        int(batch.kind),
        batch.tags,
        int(batch.keep),
        batch.function,
        shared,
        batch.control,
        batch.resent,
        batch.max_crashes,
    )
    parts: tuple[bytes | memoryview, ...]
    if event.ready_at or event.expires_at or batch.keys or len(rest) >= SHORT - PLACE.size:
        ext = Ext(
            event.ready_at or None,
            event.expires_at or None,
            None if event.producer is None else (event.producer, event.number),
            put_at=event.time,
            client=(batch.client, batch.first),
            policy=PLACE.pack(*place) + rest,
        )
        made = draft(RecordType.PUT, runs=((0, count),) if count else (), ext=ext, keys=batch.keys)
        flags, parts, blen, crc = made.flags, made.parts, made.blen, made.bcrc
    else:
        attributes = put_attributes(event, batch, place, rest)
        flags, parts, blen, crc = _EXT, (attributes,), len(attributes), crc32(attributes)
    aux = 0
    tail: tuple[bytes, ...]
    if is_packed:
        flags |= _BLOCK
        tail = times, outside, lengths, body
    elif not lengths:
        flags |= _BLOCK
        tail = (body,)
    elif count == 1 or lengths == lengths[:4] * count:
        flags |= _FIXED
        aux = int.from_bytes(lengths[:4], "little")
        tail = (body,)
    else:
        tail = lengths, body
    for part in tail:
        if part:
            crc = crc32(part, crc)
            blen += len(part)
            parts += (part,)
    return Draft(RecordType.PUT, flags, event.priority, count, 0, aux, parts, blen, crc)


@lru_cache(maxsize=256)
def _attributes(*attributes: object) -> bytes:
    """What most batches have in common with those before."""
    return plain.encode(attributes)


@lru_cache(maxsize=256)
def _load_attributes(data: bytes) -> tuple[Any, ...]:
    rest = plain.decode(data)
    if not isinstance(rest, tuple) or len(rest) != 8:
        raise ValueError("the attributes of a batch are eight")
    return rest


def draft_copy(header: RecordHeader, body: Buffer) -> Draft:
    """The same messages at another place, as they are."""
    same = header.flags, header.small, header.count, header.base, header.aux
    return Draft(RecordType.COPY, *same, (body,), len(body), header.bcrc)


def put_of(header: RecordHeader, body: bytes | memoryview) -> PutRecord:
    """What a PUT or COPY says, from its verified body."""
    found = parse(header._replace(flags=header.flags & ~_PAYLOAD_FLAGS), body)
    ext = found.ext
    policy = ext.policy or b""
    if len(policy) < PLACE.size:
        raise ValueError("a put without the attributes of its batch")
    offset, following, times, outside, lengths, size, bits = PLACE.unpack_from(policy)
    rest = _load_attributes(policy[PLACE.size :])
    kind, tags, keep, function, shared, control, resent, max_crashes = rest
    sizes = Sizes(times, outside, lengths, size)
    client, first = ext.client or (0, 0)
    ready_ats = b""
    if header.flags & Flag.BLOCK and times + outside:
        at = len(body) - times - outside - lengths - size
        ready_ats, shared = bytes(body[at : at + times]), bytes(body[at + times : at + times + outside]) or shared
    batch = Batch(
        header.count,
        b"",
        shared=shared,
        kind=kind,
        function=function,
        client=client,
        first=first,
        keep=keep,
        offset=offset,
        resent=resent,
        control=control,
        priority=header.small,
        ready_at=ext.ready_at or 0,
        ready_ats=ready_ats,
        expires_at=ext.expires_at or 0,
        keys=found.keys,
        tags=tags,
        max_crashes=max_crashes,
    )
    return PutRecord(
        header.base,
        batch,
        sizes,
        ext.put_at or 0,
        header.small,
        ext.ready_at or 0,
        ext.expires_at or 0,
        ext.producer,
        bool(bits & 1),
        following,
        bool(bits & 2),
    )


def payload_of(header: RecordHeader, body: bytes | memoryview, sizes: Sizes) -> tuple[memoryview, bytes]:
    """Body and lengths of a batch, from its record's verified body. Nothing is copied but the lengths."""
    view, at = memoryview(body), len(body) - sizes.body
    if header.flags & Flag.FIXED:
        return view[at:], header.aux.to_bytes(4, "little") * header.count
    return view[at:], bytes(view[at - sizes.lengths : at])


# ------------------------------------------------------------------------------------------------------ all the others


def draft_packed(event: Event, ride: Ride, puts: int) -> Draft | None:
    """The record of a lease, or of an ack without values, as nearly all of them are; None of anything else."""
    kind = event.__class__
    if kind is Delivered:
        return delivered(event, puts)  # type: ignore[arg-type]  # mypy does not know what `kind` says
    if kind is Acked and (ride is None or not isinstance(ride, Report) or not ride.values):
        return acked(event, puts)  # type: ignore[arg-type]
    return None


def draft_events(event: Event, ride: Ride, puts: int) -> list[Draft]:
    """The record of an event that is no put; some, if it is about more messages than a record holds.

    `puts`: how many messages were put before it happened.
    """
    assert not isinstance(event, Put)
    packed = draft_packed(event, ride, puts)
    if packed is not None:
        return [packed]
    before = _U64.pack(puts)
    if isinstance(event, Delivered):
        ext = Ext(
            lease=event.lease,
            deadline=event.deadline,
            owner=event.owner,
            put_at=event.time,
            policy=before + _U64.pack(event.request),
        )
        return [draft(RecordType.DELIVERED, runs=event.runs, ordered=True, ext=ext, small=event.once)]
    if isinstance(event, Acked):
        values = ride.values if isinstance(ride, Report) else b""
        ext = Ext(lease=event.lease, put_at=event.time, policy=before)
        if not values:
            return [_draft(RecordType.ACKED, runs, ext, event.keep) for runs in _pieces(event.runs)]
        assert isinstance(ride, Report)
        ext = ext._replace(block=(ride.start, ride.stop - ride.start))
        made = draft(RecordType.ACKED, runs=event.runs, ext=ext, block=bytes(values), small=event.keep)
        return [made]
    kind, ext, small = _shape(event)
    ext = ext._replace(policy=before)
    return [_draft_failed(event, kind, ext, small, runs, ride) for runs in _pieces(event.runs)]


def _draft(kind: RecordType, runs: Sequence[Run], ext: Ext, small: int) -> Draft:
    return draft(kind, runs=runs, ext=ext, small=small)


def _draft_failed(event: Event, kind: RecordType, ext: Ext, small: int, runs: Sequence[Run], ride: Ride) -> Draft:
    if not isinstance(event, Failed) or not isinstance(ride, Mapping):
        return _draft(kind, runs, ext, small)
    rows = [
        (seq, found.blob, found.text, found.body, int(found.reason))
        for start, stop in runs
        for seq in range(start, stop)
        if (found := ride.get(seq)) is not None
    ]
    return draft(kind, runs=runs, ext=ext, block=plain.encode(rows), small=small)


def _shape(event: Event) -> tuple[RecordType, Ext, int]:
    if isinstance(event, Returned):
        small = _NUMBER_OF[event.reason] << 4 | event.blame
        return RecordType.RETURNED, Ext(ready_at=event.ready_at or None, lease=event.lease, put_at=event.time), small
    if isinstance(event, Failed):
        return RecordType.FAILED, Ext(lease=event.lease, put_at=event.time), _NUMBER_OF[event.reason]
    if isinstance(event, Cancelled):
        return RecordType.CANCELLED, Ext(lease=event.lease, put_at=event.time), 0
    if isinstance(event, Expired):
        return RecordType.EXPIRED, Ext(lease=event.lease or None, put_at=event.time), event.agreed
    return _PLAIN[type(event)], Ext(put_at=event.time), 0


_PLAIN: Final[dict[type, RecordType]] = {
    CancelAsked: RecordType.CANCEL_ASKED,
    Requeued: RecordType.REQUEUED,
    Purged: RecordType.PURGED,
    Forgotten: RecordType.FORGOTTEN,
}


_EVENTS: Final = frozenset(
    [
        *_PLAIN.values(),
        RecordType.DELIVERED,
        RecordType.ACKED,
        RecordType.RETURNED,
        RecordType.FAILED,
        RecordType.CANCELLED,
        RecordType.EXPIRED,
    ]
)


def _pieces(runs: Sequence[Run]) -> Iterator[tuple[Run, ...]]:
    """Runs in portions of what a record holds."""
    piece: list[Run] = []
    room = MAX_COUNT
    for start, stop in runs:
        while start < stop:
            end = min(stop, start + room)
            piece.append((start, end))
            room -= end - start
            start = end
            if not room:
                yield tuple(piece)
                piece, room = [], MAX_COUNT
    if piece:
        yield tuple(piece)


def event_of(header: RecordHeader, body: bytes) -> tuple[Event, Ride, int]:
    """An event, what rides along, and how many messages were put before. `ValueError` for any other record."""
    if header.type not in _EVENTS:
        raise ValueError(f"a record of type {header.type} is no event")
    found = parse(header, body)
    policy = found.ext.policy or b""
    if len(policy) < _U64.size:
        raise ValueError("an event that does not say what was put before it")
    return *_event(header, found, policy), _U64.unpack_from(policy)[0]


def _event(header: RecordHeader, found: Contents, policy: bytes) -> tuple[Event, Ride]:
    ext, runs, small = found.ext, found.runs, header.small
    time, lease = ext.put_at or 0, ext.lease or 0
    block = found.payloads[0] if found.payloads else None
    if header.type == RecordType.DELIVERED:
        request = _U64.unpack_from(policy, 8)[0] if len(policy) >= 16 else 0
        return Delivered(time, runs, lease, ext.owner or "", bool(small), ext.deadline or 0, request), None
    if header.type == RecordType.ACKED:
        start, span = ext.block or (0, 0)
        report = None if block is None else Report(start, start + span, bytes(block))
        return Acked(time, runs, lease, bool(small)), report
    if header.type == RecordType.RETURNED:
        return Returned(time, runs, lease, _reason(small >> 4), Blame(small & 15), ext.ready_at or 0), None
    if header.type == RecordType.FAILED:
        failures = None if block is None else _failures(block)
        return Failed(time, runs, lease, _reason(small)), failures
    if header.type == RecordType.CANCELLED:
        return Cancelled(time, runs, lease), None
    if header.type == RecordType.EXPIRED:
        return Expired(time, runs, lease, bool(small)), None
    made = next(made for made, kind in _PLAIN.items() if kind == header.type)
    event: Event = made(time, runs)
    return event, None


def _reason(number: int) -> Reason:
    if not 0 <= number < len(_REASONS):
        raise ValueError(f"no reason has the number {number}")
    return _REASONS[number]


def _failures(block: memoryview) -> dict[int, Failure]:
    rows = plain.decode(block)
    return {seq: Failure(0, blob, text, -1, body, reason) for seq, blob, text, body, reason in rows}
