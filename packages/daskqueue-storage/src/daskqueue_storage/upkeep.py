"""What a queue does between its operations: it pays what they owe, writes snapshots, and gives the disk back.

An operation is a turn. At its end a snapshot is written if replaying would take long, old segments go if that frees
something, and what was recorded is made as safe as it must be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from daskqueue_core.handover import HandOver
from daskqueue_storage.errors import ClosedError, DamagedRecord, DiskFullError, RecordTooLarge, StorageError
from daskqueue_storage.index import encode_snapshot
from daskqueue_storage.keydir import Needed, Place
from daskqueue_storage.records import draft_copy
from daskqueue_storage.restoring import RestoredQueue

__all__ = ["MaintainedQueue"]

SNAPSHOT_SHARE: Final = 8
"""A snapshot is written when what would have to be replayed is so many times as large as the last one."""
INDEX_SHARE: Final = 4
"""An IndexSegment grows to so small a part of a LogSegment, or to `SNAPSHOT_SHARE` snapshots: there are two of them."""

_log = logging.getLogger("daskqueue_storage")


class MaintainedQueue(RestoredQueue):
    """A queue in a directory that does not grow beyond what it holds."""

    _closed = False

    def _maintain(self, segment_bytes: int) -> None:
        """From now on."""
        self._segment_bytes = segment_bytes
        self._snapshot_at = segment_bytes // INDEX_SHARE
        self._in_turn = _Operation(self)

    def _operation(self) -> AbstractContextManager[None]:
        """Our turn; at its end what was recorded is as safe as it must be."""
        return self._in_turn  # what is done for every message takes it itself: one call less

    def compact(self, max_bytes: int | None = None) -> int:
        """Copy what is needed out of old segments (at most about `max_bytes` of it) and delete them; how many went."""
        with self._operation():
            self._squeeze(1, max_bytes)
            self._snapshot()
            if self._store.retirable(self._store.log.next_rno):
                self._snapshot()
            return self._store.retire()

    def _look_after(self) -> None:
        """After an operation: a snapshot when replaying would take long, and old segments go."""
        if self._grown >= self._snapshot_at:
            self._tidy(self._snapshot)
        shelf = self._store.shelf
        shelf.has_changed = False
        is_empty = not shelf.live and len(shelf.segments) > 1 and shelf.segments[-1] is not shelf.emptied
        if shelf.has_grown or is_empty or shelf.freed >= shelf.much:
            shelf.has_grown, shelf.freed = False, 0
            if is_empty:  # tried once for each segment, whether it works or not
                shelf.emptied = shelf.segments[-1]
            self._tidy(self._make_room_on_disk)

    def _make_room_on_disk(self) -> None:
        """Of two snapshots the older must know a segment that goes: where that frees much, two are written."""
        store = self._store
        try:
            self._squeeze(1, self._segment_bytes)
            store.log.begin()  # one that is full may go, too
        except DiskFullError as problem:
            _log.info("%s: nothing is copied: %s", store.root, problem)
        try:
            for _ in range(2):
                known, going = store.retirable(store.log.next_rno), store.retirable()
                if known == going:
                    break
                free = sum(info.valid for info in store.shelf.segments[going:known])
                if free < SNAPSHOT_SHARE * store.snapshot_size and store.shelf.live:
                    break
                self._snapshot()
        finally:
            store.retire()  # a full disk needs it most

    def _tidy(self, step: Callable[[], object]) -> None:
        """What was asked for is done; that this is not possible now is no error of it."""
        try:
            step()
        except (StorageError, OSError) as problem:
            _log.warning("%s: old segments stay for now: %s", self._store.root, problem)

    def _squeeze(self, spare_segments: int, max_bytes: int | None) -> None:
        """Move what is needed out of the oldest segments while more than half of the log is garbage.

        The copies are durable before anything goes: RETIRED stands in the same log, behind them, and is synced.
        """
        shelf = self._store.shelf
        total, live = sum(info.valid for info in shelf.segments), sum(shelf.live_bytes.values())
        room, copied = spare_segments * self._segment_bytes, 0
        by_segment: dict[int, list[Needed]] | None = None
        for info in list(shelf.segments[:-1]):
            if not info.sealed or total <= 2 * live + room or (max_bytes is not None and copied >= max_bytes):
                break
            if by_segment is None:
                by_segment = {}
                for needed in self._payloads.needed():
                    by_segment.setdefault(needed.place.segment.segno, []).append(needed)
            moved = sum([self._move(needed) for needed in by_segment.get(info.segno, ())])
            copied += moved
            total += moved - info.valid

    def _move(self, needed: Needed) -> int:
        base, stop, place = needed
        try:
            header, body = self._store.shelf.read(place, base, stop - base)
        except DamagedRecord as damage:
            self._fail_damaged([(base, stop)], damage)
            self._payloads.lose(base, stop)
            return 0
        placed = self._store.log.append(draft_copy(header, body))
        self._payloads.move(base, Place(placed.segment, placed.pos, place.blen))
        return place.size

    def _snapshot(self) -> None:
        """All that is held, as one record."""
        # Whatever stands in the log by now is in here, or belongs to no put, or is no message.
        store = self._store
        store.covered = max(store.covered, store.log.next_rno)
        again = self._payloads.rows_again()
        state = HandOver(
            self.uuid,
            self.epoch,
            self._clock(),
            0,
            self._ledger.snapshot(),
            self._routes.rows(),
            [],
            again,
            self._payloads.nbytes,
            self._payloads.unfinished,
            self._names.rows(),
            self._letters.rows(),
            self._kept.rows(),
            self._mail.rows(),
            list(self._gone),
            self._retries,
            self._attempted,
        )
        body = encode_snapshot(store.covered, state, self._payloads.batches(), self._payloads.singles())
        self._grown = 0
        try:
            store.write_snapshot(store.covered, body)
        except RecordTooLarge as problem:
            _log.warning("%s: no snapshot, opening will take longer: %s", self._store.root, problem)
            return
        self._snapshot_at = max(self._segment_bytes // INDEX_SHARE, SNAPSHOT_SHARE * len(body))


class _Operation:
    """A turn of a queue. A class, since a generator costs as much as the whole lease of one message."""

    __slots__ = ("_queue",)

    def __init__(self, queue: MaintainedQueue) -> None:
        self._queue = queue

    def __enter__(self) -> None:
        queue = self._queue
        turn = queue._turn
        turn.lock.acquire()  # `take`, without the call
        turn.depth += 1
        if queue._closed:
            turn.leave()
            raise ClosedError(queue._store.root)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        queue = self._queue
        turn = queue._turn
        owed = None
        try:
            if kind is None and turn.depth == 1:
                owed, turn.owed = turn.owed, None
                if queue._grown >= queue._snapshot_at or queue._store.shelf.has_changed:
                    queue._look_after()
        finally:
            turn.depth -= 1
            turn.lock.release()
        if owed is not None:
            queue._store.index.commit(owed)
