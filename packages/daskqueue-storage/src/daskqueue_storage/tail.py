"""The puts in the end of the log that no snapshot knows, and where batches were moved since.

A put of several records is found with its end or not at all, and as its producer's only as a whole. Messages that were
put one by one are found by the thousand: where the attributes of a record are those of the one before, byte for byte,
only its position and the length of its body are looked at.

Not here: reading and verifying records (`store`), and taking what was found (`queue`).
Invariant: what is found is in the order of its numbers.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from daskqueue_core.batch import Batch, Keep
from daskqueue_core.events import Put
from daskqueue_storage.format import Flag, RecordHeader, RecordType
from daskqueue_storage.records import PutRecord, put_of
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.shelf import Place, slim

__all__ = ["FoundPut", "FoundSingles", "found_puts"]

_log = logging.getLogger("daskqueue_storage")

Records = Callable[[SegmentInfo, int], Iterable[tuple[RecordHeader, bytes]]]
"""The records of a segment from a position on."""
"""The records of a segment whose bytes verify."""

# A single without options has its attributes at fixed places: the time it was put, and the length of its body.
_TIME: Final = slice(4, 12)
_MIDDLE: Final = slice(12, 56)
_SIZE: Final = slice(56, 60)
_FIXED: Final = int(Flag.EXT | Flag.PAYLOADS | Flag.FIXED)
_HOLDS_MESSAGES: Final = frozenset([int(RecordType.PUT), int(RecordType.COPY)])
_PUT: Final = int(RecordType.PUT)
_HEAD: Final = bytes((8, 8))  # tag and length of the time


class FoundPut(NamedTuple):
    """A put. `event` has no route yet."""

    event: Put
    batches: list[Batch]
    places: list[Place]

    @property
    def base(self) -> int:
        """Its first message."""
        return self.event.base


class FoundSingles(NamedTuple):
    """Messages put one by one in one segment, all alike."""

    base: int
    batch: Batch  # of the first, without its payload
    put_at: int
    segment: SegmentInfo
    extra: int  # what a record's body has beside the message's
    positions: array[int]
    sizes: array[int]  # of the messages' bodies

    def cut(self, seq: int) -> tuple[FoundSingles, FoundSingles]:
        """Those before `seq`, and the others."""
        at = seq - self.base
        return (
            self._replace(positions=self.positions[:at], sizes=self.sizes[:at]),
            self._replace(base=seq, positions=self.positions[at:], sizes=self.sizes[at:]),
        )

    @property
    def stop(self) -> int:
        """The number behind the last."""
        return self.base + len(self.positions)


def found_puts(
    segments: Sequence[SegmentInfo], records: Records, covered: int, knows: Callable[[int], bool]
) -> tuple[list[FoundPut | FoundSingles], dict[int, Place]]:
    """The puts from record number `covered` on, and where batches were moved since.

    `knows`: whether the snapshot knows a batch, by base.
    """
    found: list[FoundPut | FoundSingles] = []
    moved: dict[int, Place] = {}
    copies: dict[int, tuple[PutRecord, Place]] = {}
    group: list[tuple[PutRecord, Place]] = []
    for info in segments:
        if info.last_rno < covered + info.closed:  # its CLOSE is the one record that a last snapshot cannot know
            continue
        like: _Like | None = None
        for header, body in records(info, info.begin_of(covered)):
            if header.type not in _HOLDS_MESSAGES or header.rno < covered:
                continue
            if like is not None and like.takes(header, body):
                continue
            try:
                record = put_of(header, body)
            except ValueError as problem:
                _log.warning("%s: record %d makes no sense: %s", info.path, header.rno, problem)
                continue
            place = Place(info, header.pos, header.blen)
            if header.type == RecordType.COPY:
                moved[record.base] = place
                copies[record.base] = (record, place)
                continue
            if group and not _goes_on(group[-1][0], record):
                group = []
            if _is_plain(header, record, body):
                like = _Like(info, header, record, body)
                found.append(like.found)
                continue
            group.append((record, place))
            if record.following == 0:
                found.append(_put(group))
                group = []
    _add_copies(found, copies, knows)
    found.sort(key=lambda put: put.base)
    return found, moved


def _add_copies(
    found: list[FoundPut | FoundSingles],
    copies: dict[int, tuple[PutRecord, Place]],
    knows: Callable[[int], bool],
) -> None:
    """What was moved and whose put is gone, while no snapshot is left that knows it."""
    if not copies:
        return
    there = {base for put in found for base in _bases(put)}
    for base, (record, place) in copies.items():
        if base not in there and not knows(base):
            found.append(_put([(record._replace(goes_on=True), place)]))


class _Like:
    """Takes the records that are like the first one but for time, position and payload."""

    def __init__(self, info: SegmentInfo, header: RecordHeader, record: PutRecord, body: bytes) -> None:
        extra = header.blen - record.sizes.body
        batch = slim(record.batch, record.sizes.body, 4)
        self.found = FoundSingles(
            record.base, batch, record.put_at, info, extra, array("I", [header.pos]), array("I", [record.sizes.body])
        )
        self._next = record.base + 1
        self._small = header.small
        self._extra = extra
        self._middle, self._rest = body[_MIDDLE], body[_SIZE.stop : extra]
        self._head = body[: _TIME.start]

    def takes(self, header: RecordHeader, body: bytes) -> bool:
        """Whether it is the next of them; then it is among them."""
        extra = self._extra
        if (
            header.base != self._next
            or header.flags != _FIXED
            or header.count != 1
            or header.type != _PUT
            or header.small != self._small
            or header.blen - extra != header.aux
            or body[_MIDDLE] != self._middle
            or body[_SIZE.stop : extra] != self._rest
            or body[: _TIME.start] != self._head
        ):
            return False
        self.found.positions.append(header.pos)
        self.found.sizes.append(header.aux)
        self._next += 1
        return True


def _is_plain(header: RecordHeader, record: PutRecord, body: bytes) -> bool:
    """Whether it is a single that asks for nothing special, as `Singles` have them."""
    batch = record.batch
    return (
        header.flags == _FIXED
        and header.count == 1
        and batch.keep == Keep.NONE
        and not (record.producer or record.suspect or record.following or record.goes_on)
        and not (batch.keys or batch.client or batch.ready_at or batch.expires_at)
        and body[2:4] == _HEAD
        and header.blen - record.sizes.body >= _SIZE.stop
    )


def _goes_on(before: PutRecord, record: PutRecord) -> bool:
    expected = before.following - 1, before.base + before.batch.count
    return record.goes_on and (record.following, record.base) == expected


def _bases(put: FoundPut | FoundSingles) -> Iterator[int]:
    if isinstance(put, FoundSingles):
        yield from range(put.base, put.stop)
        return
    base = put.event.base
    for batch in put.batches:
        yield base
        base += batch.count


def _put(group: Sequence[tuple[PutRecord, Place]]) -> FoundPut:
    """The event that these records are."""
    records = [record for record, _ in group]
    first = records[0]
    # A put whose beginning is lost was perhaps never acknowledged: its producer may put it again.
    producer, number = (first.producer if not first.goes_on else None) or (None, 0)
    event = Put(
        first.put_at,
        first.base,
        sum(record.batch.count for record in records),
        producer,
        number,
        first.priority,
        0,
        first.ready_at,
        b"".join([record.batch.ready_ats for record in records]),
        first.expires_at,
        tuple(key for record in records for key in record.batch.keys),
        first.suspect,
    )
    batches = [slim(each.batch, each.sizes.body, each.sizes.lengths) for each in records if each.batch.count]
    return FoundPut(event, batches, [place for record, place in group if record.batch.count])
