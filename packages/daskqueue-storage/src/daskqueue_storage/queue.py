"""`DurableQueue`: core's queue with a journal in a directory.

Every operation is core's own: decide, record, take, reply. Here `_record` appends, a put's messages may be leased when
the put is as durable as the sync policy says, and an operation returns when what it recorded is. Payloads stay on disk
(`keydir`); opening takes the newest snapshot, then the puts of the log's end, then what happened to them (`store`).

Not here: rules about messages (core), files (`store`).

Invariants: what is replayed is what was recorded, so a queue that is opened again holds what it held, up to what a
power failure may take by the sync policy; then messages are delivered again, never lost. A message whose bytes do not
verify fails as a dead letter, and the others go on. Nothing is told, by whichever thread, before it is as safe as the
sync policy says.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from types import TracebackType
from typing import Any, Final, Literal, TypeVar, cast

from daskqueue_core.batch import Batch, Part, Run
from daskqueue_core.contents import Ride
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.events import Acked, Delivered, Event, Failed, Put, Reason, Returned
from daskqueue_core.handover import HandOver
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Cursor, Failure, Outcome, Outcomes, Report
from daskqueue_core.protocols import DEFAULT_TTL, REPLY_BYTES, Accepted, Demand, Lease, PutAnswer
from daskqueue_core.queue import TransientQueue
from daskqueue_core.replay import fitting
from daskqueue_storage.access import at_the_door
from daskqueue_storage.directory import uuid_text
from daskqueue_storage.errors import ClosedError, DamagedRecord, DiskFullError, RecordTooLarge, StorageError
from daskqueue_storage.files import Files, OsFiles
from daskqueue_storage.format import MAX_COUNT
from daskqueue_storage.index import encode_snapshot
from daskqueue_storage.keydir import DiskPayloads, Needed, Place
from daskqueue_storage.records import draft_copy, draft_events, draft_puts
from daskqueue_storage.report import RecoveryReport
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.store import QueueStore
from daskqueue_storage.tail import FoundPut, FoundSingles
from daskqueue_storage.turn import Turn
from daskqueue_storage.writer import Placed, check_sync

__all__ = ["DurableQueue"]

_log = logging.getLogger("daskqueue_storage")
_F = TypeVar("_F", bound=Callable[..., Any])
SNAPSHOT_SHARE: Final = 8
"""A snapshot is written when what would have to be replayed is so many times as large as the last one."""
INDEX_SHARE: Final = 4
"""An IndexSegment grows to so small a part of a LogSegment, or to `SNAPSHOT_SHARE` snapshots: there are two of them."""
HEADER_BYTES: Final = 512  # about what replaying a put costs, in bytes of a snapshot


def _serialised(method: _F) -> _F:
    """An operation of core's queue, in turn, that returns when what it recorded is safe."""

    @wraps(method)
    def operation(self: DurableQueue, *args: Any, **options: Any) -> Any:
        if self._turn.is_mine:  # part of another operation
            return method(self, *args, **options)
        with self._operation():
            return method(self, *args, **options)

    return cast(_F, operation)


class DurableQueue(TransientQueue):
    """A queue in a directory. Thread-safe; one process at a time has it open.

    When `put` returns, the message is: `sync="batch"`: on disk; `sync=0.5`: with the operating system, on disk half a
    second later; `sync="none"`: with the operating system. So are results; bare acks and deliveries only if `ack_sync`,
    since losing one costs no more than a second run. `owners` keep their leases; what others held is ready again, and
    of those that are known to be `lost` it is suspect, as if the queue had lived on.
    """

    report: RecoveryReport
    """What opening found."""
    taken_back: int = 0
    """Messages that were delivered when the directory was left, to owners that are not here any more."""
    _owed: Placed | None = None  # what was recorded in this operation and must last
    _last: Placed | None = None  # the same, of all operations

    @at_the_door
    def __init__(
        self,
        path: object,
        *,
        sync: str | float = "batch",
        ack_sync: bool = False,
        maxsize: int = 0,
        max_bytes: int = 0,
        result_ttl: int | None = 3600 * 10**9,
        result_max_bytes: int | None = 256 << 20,
        segment_bytes: int = 64 << 20,
        lock_ttl: float = 30.0,
        create: bool = True,
        uuid: bytes | None = None,
        owner: str = "",
        owners: Collection[str] = (),
        lost: Collection[str] = (),
        wait: float = 0.0,
        allow_shared: bool = False,
        on_damage: Literal["report", "raise"] = "report",
        clock: Callable[[], int] | None = None,
        files: Files | None = None,
    ) -> None:
        if on_damage not in ("report", "raise"):
            raise ValueError(f'on_damage is "report" or "raise", not {on_damage!r}')
        if segment_bytes < 4096:
            raise ValueError(f"segment_bytes is at least 4096, not {segment_bytes}")
        if not 0 < lock_ttl < 1e6 or not wait >= 0:
            raise ValueError(f"lock_ttl is positive and wait not negative, not {lock_ttl} and {wait}")
        if uuid is not None and len(uuid) != 16:
            raise ValueError(f"a uuid has 16 bytes, not {len(uuid)}")
        self._sync = check_sync(sync)
        self._ack_sync = ack_sync
        self._segment_bytes = segment_bytes
        self._turn = Turn()
        self._in_turn = _Operation(self)
        self._closed = False
        self._putting: Placed | None = None  # the last record of the last put
        self._covered = 0  # the first record number of the log that no event here has come from
        self._grown = self._last_size = 0
        self._snapshot_at = segment_bytes // INDEX_SHARE
        self._emptied: SegmentInfo | None = None  # the last segment when nothing was needed any more
        self._rolled = False
        self._stop_timer: Callable[[], None] = lambda: None
        system: Files = files if files is not None else OsFiles()
        self._store = store = QueueStore(
            system,
            path,
            create=create,
            uuid=uuid,
            lock_ttl=lock_ttl,
            owner=owner,
            wait=wait,
            allow_shared=allow_shared,
            on_damage=on_damage,
        )
        try:
            super().__init__(
                clock=clock if clock is not None else _steady(system),
                uuid=uuid_text(store.uuid),
                epoch=store.lease.epoch,
                maxsize=maxsize,
                max_bytes=max_bytes,
                result_ttl=result_ttl,
                result_max_bytes=result_max_bytes,
            )
            self._payloads: DiskPayloads = DiskPayloads(store.shelf)
            self._restore()
            pages = self._ledger.pages
            self.report = store.begin(pages.next_seq, sync=self._sync, segment_bytes=segment_bytes)
            pages.skip(store.log.next_seq)
            self._ledger.commit(pages.next_seq)
            with self._operation():
                self._reopen(owners, lost)
            if isinstance(self._sync, float):
                self._stop_timer = system.every(self._sync, _weakly(self))
        except BaseException:
            store.abandon()
            raise

    # -------------------------------------------------------------------------------------------------------- opening

    def _restore(self) -> None:
        """Hold what the directory says."""
        store, snapshot = self._store, self._store.snapshot
        if snapshot is not None:
            self._payloads.places = dict(snapshot.places)
            self._payloads.singles_rows = snapshot.singles
            self._load(snapshot.state)
            self._covered = snapshot.covered
        puts, moved = store.puts(self._payloads.knows)
        for base, place in moved.items():
            self._payloads.move(base, place)
        if store.shelf.segments:
            self._covered = max(self._covered, store.shelf.segments[-1].last_rno + 1)
        self._payloads.places.clear()
        waiting, now = deque(puts), self._clock()
        for event, ride, before in store.events():
            while waiting and waiting[0].base < before:
                put = waiting.popleft()
                if isinstance(put, FoundSingles) and put.stop > before:
                    put, rest = put.cut(before)
                    waiting.appendleft(rest)
                self._replay_put(put, moved)
            if isinstance(event, Delivered):  # who is kept has a time to live from now on
                event = event._replace(deadline=now + max(0, event.deadline - event.time))
            self._replay(event, ride)
            self._grown += HEADER_BYTES
        for put in waiting:
            self._replay_put(put, moved)
        self._grown += HEADER_BYTES * sum(len(put.positions) if isinstance(put, FoundSingles) else 1 for put in puts)

    def _replay_singles(self, found: FoundSingles, moved: Mapping[int, Place]) -> None:
        """As so many puts."""
        ledger = self._ledger
        known = ledger.puts - found.base
        if known > 0:
            ledger.dropped += min(known, len(found.positions))
            if known >= len(found.positions):
                return
            found = found.cut(ledger.puts)[1]
        batch, count = found.batch, len(found.positions)
        route = self._routes.number(batch.kind, batch.tags)
        event = Put(found.put_at, found.base, count, None, 0, batch.priority, route)
        fit, _ = fitting(ledger, event)
        assert fit is not None
        ledger.apply(fit)
        self._payloads.add_singles(found, route)
        for seq in moved.keys() & range(found.base, found.stop) if moved else ():
            self._payloads.move(seq, moved[seq])

    def _replay_put(self, put: FoundPut | FoundSingles, moved: Mapping[int, Place]) -> None:
        """Its batches stand where they stood, or where they were moved since."""
        if isinstance(put, FoundSingles):
            self._replay_singles(put, moved)
            return
        event, base = put.event, put.event.base
        if put.batches:
            first = put.batches[0]
            event = event._replace(route=self._routes.number(first.kind, first.tags))
        for batch, place in zip(put.batches, put.places):
            self._payloads.places[base] = moved.get(base, place)
            base += batch.count
        self._replay(event, put.batches)

    def _replay(self, event: Event, ride: Ride) -> None:
        """Take what was recorded, as far as it fits what else is known."""
        ledger = self._ledger
        fit, dropped = fitting(ledger, event)
        ledger.dropped += dropped
        if isinstance(event, Delivered):
            ledger.next_lease = max(ledger.next_lease, event.lease + 1)
        if fit is None:
            return
        ledger._replaying = True
        try:
            self._take(fit, ride)
        finally:
            ledger._replaying = False
        if isinstance(event, Delivered):
            ledger.leases.by_id[event.lease].regrant(event.runs)

    def _reopen(self, owners: Collection[str], lost: Collection[str]) -> None:
        """What nobody of `owners` holds is ready again; what must not run twice fails."""
        ledger, now = self._ledger, self._clock()
        for owner in ledger.owners():
            if owner in owners:
                continue
            if owner in lost:
                self.taken_back += self.owner_lost(owner)
                continue
            for lease in list(ledger.leases.of(owner)):
                event: Event | None
                if lease.once:
                    event = ledger.decide_fail(lease.id, None, now, reason=Reason.EARLY_ACK)
                else:
                    event = ledger.decide_return(lease.id, None, now, reason=Reason.REOPENED)
                if event is not None:
                    self.taken_back += sum(stop - start for start, stop in event.runs)
                    self._happen(event)
        self._expire_kept()

    # ---------------------------------------------------------------------------------------------------- the journal

    def _operation(self) -> AbstractContextManager[None]:
        """Our turn; at its end what was recorded is as safe as it must be."""
        return self._in_turn

    def _happen(self, event: Event, ride: Ride = None) -> tuple[Run, ...]:
        if isinstance(event, Failed) and isinstance(ride, Mapping):
            ride = self._with_bodies(event, ride)
        return super()._happen(event, ride)

    def _with_bodies(self, event: Failed, failures: Mapping[int, Failure]) -> dict[int, Failure]:
        """What dies takes its own bytes along, so that it needs no segment of the log."""
        filled: dict[int, Failure] = {}
        for entry, start, stop in self._payloads.pieces(event.runs):
            for seq in range(start, stop):
                failure = failures.get(seq)
                if failure is None:
                    continue
                if entry is not None and not failure.body and event.reason is not Reason.DAMAGED:
                    failure = failure._replace(body=self._payloads.own_body(entry, seq))
                filled[seq] = failure
        return filled

    def _record(self, event: Event, ride: Ride) -> None:
        if isinstance(event, Put):
            self._record_put(event, cast("Sequence[Any]", ride))
            return
        store, placed = self._store, None
        for draft in draft_events(event, ride, self._ledger.puts):
            placed = store.index.append(draft)
            self._grown += draft.blen + HEADER_BYTES // 2
        if placed is None:
            return
        if self._must_last(event, ride):
            self._owed = self._last = placed
        else:
            store.index.verify()  # it may be lost, but who was replaced may not even say it

    def _must_last(self, event: Event, ride: Ride) -> bool:
        """Whether to reply only when this is as durable as was asked for; otherwise it may be done again."""
        if isinstance(event, Delivered):
            return event.once or self._ack_sync
        if isinstance(event, Acked):
            return self._ack_sync or (isinstance(ride, Report) and bool(ride.values))
        return not isinstance(event, Returned)

    def _record_put(self, event: Put, batches: Sequence[Any]) -> None:
        store = self._store
        drafts = draft_puts(event, batches)
        segment = store.log.segment
        try:
            placed = store.append_puts(drafts)
        except BaseException:
            self._ledger.pages.skip(store.log.next_seq)  # what of it was written belongs to no put
            raise
        for draft, at in zip(drafts, placed):
            if draft.count:
                self._payloads.places[at.base] = Place(at.segment, at.pos, draft.blen)
        self._putting = placed[-1]
        self._grown += HEADER_BYTES * len(drafts)
        if placed[-1].segment is not segment:
            self._rolled = True

    def _commit(self, event: Put) -> None:
        self._await_put()
        super()._commit(event)

    def _await_put(self) -> None:
        """All that was put is as safe as it must be. Others may have the queue meanwhile, but not what we owe."""
        placed = self._putting
        assert placed is not None
        if self._sync != "batch":
            self._store.log.commit(placed)
            return
        owed, self._owed = self._owed, None
        with self._turn.away():
            self._store.log.commit(placed)
        self._owed = owed

    def _owe_what_is_told(self) -> None:
        """What is read now is told when it is safe, also if another thread still waits for that."""
        self._owed = self._last

    # ------------------------------------------------------------------------------------------------------ operations

    put_many = _serialised(TransientQueue.put_many)
    put_block = _serialised(TransientQueue.put_block)
    has_outcomes = _serialised(TransientQueue.has_outcomes)
    ack = _serialised(TransientQueue.ack)
    nack = _serialised(TransientQueue.nack)
    settle = _serialised(TransientQueue.settle)
    release = _serialised(TransientQueue.release)
    agree = _serialised(TransientQueue.agree)
    heartbeat = _serialised(TransientQueue.heartbeat)
    owner_lost = _serialised(TransientQueue.owner_lost)
    owners = _serialised(TransientQueue.owners)
    shift_deadlines = _serialised(TransientQueue.shift_deadlines)
    next_ready_at = _serialised(TransientQueue.next_ready_at)
    tick = _serialised(TransientQueue.tick)
    cancel = _serialised(TransientQueue.cancel)
    cancel_tasks = _serialised(TransientQueue.cancel_tasks)
    cancel_named = _serialised(TransientQueue.cancel_named)
    forget = _serialised(TransientQueue.forget)
    forget_tasks = _serialised(TransientQueue.forget_tasks)
    requeue = _serialised(TransientQueue.requeue)
    purge = _serialised(TransientQueue.purge)
    stats = _serialised(TransientQueue.stats)
    depth = _serialised(TransientQueue.depth)
    validate = _serialised(TransientQueue.validate)

    def admit(self, batches: Sequence[Batch], *, producer: int | None = None, number: int = 0) -> PutAnswer:
        """As `TransientQueue.admit`. What another thread is putting under this number, or these keys, is safe too."""
        if self._turn.is_mine:  # a put without either
            return super().admit(batches, producer=producer, number=number)
        with self._operation():
            before = self._ledger.puts
            answer = super().admit(batches, producer=producer, number=number)
            if isinstance(answer, Accepted) and self._putting is not None:
                new = answer.base >= before and answer.count == sum([batch.count for batch in batches])
                if not new:
                    self._await_put()
            return answer

    def poll(self, client: int, cursor: Cursor | None = None, limit_bytes: int = REPLY_BYTES) -> Outcomes:
        """As `TransientQueue.poll`. What was acknowledged is told once more after a crash, not after `close`."""
        with self._operation():
            self._grown += 1
            answer = super().poll(client, cursor, limit_bytes)
            if answer.outcomes:
                self._owe_what_is_told()
            return answer

    def subscribe(self, client: int, first: int, names: Sequence[TaskName]) -> list[int]:
        """As `TransientQueue.subscribe`. After a crash it must be done again, not after `close`."""
        with self._operation():
            self._grown += 1
            self._owe_what_is_told()
            return super().subscribe(client, first, names)

    def read_kept(self, after: int = 0, limit_bytes: int = REPLY_BYTES) -> tuple[int, list[tuple[int, Outcome]]]:
        """As `TransientQueue.read_kept`."""
        with self._operation():
            self._owe_what_is_told()
            return super().read_kept(after, limit_bytes)

    def dead_letters(self, after: int = 0, limit: int | None = None) -> list[DeadLetter]:
        """As `TransientQueue.dead_letters`."""
        with self._operation():
            self._owe_what_is_told()
            return super().dead_letters(after, limit)

    def lease(
        self,
        limit: int,
        *,
        owner: str = "local",
        request: int = 0,
        ttl: int = DEFAULT_TTL,
        demand: Demand | None = None,
        once: bool = False,
        suspects: bool = True,
    ) -> Lease | None:
        """As `TransientQueue.lease`, with payloads from the disk. What cannot be read fails, the next is taken."""
        with self._operation():
            while True:
                lease = super().lease(
                    min(limit, MAX_COUNT),
                    owner=owner,
                    request=request,
                    ttl=ttl,
                    demand=demand,
                    once=once,
                    suspects=suspects,
                )
                if lease is None or lease.parts:
                    return lease

    def _parts(self, runs: Sequence[Run], have: Collection[int]) -> tuple[Part, ...]:
        parts: list[Part] = []
        for run in runs:
            for entry, start, stop in self._payloads.pieces([run]):
                assert entry is not None, f"message {start} has no batch"
                while start < stop:
                    end = stop
                    try:
                        attempts = self._ledger.attempts_of(start, stop) if self._attempted else b""
                        parts.append(entry.part(start, stop, have, attempts))
                    except DamagedRecord as damage:  # what it names, and no more
                        end = min(stop, damage.next_offset)
                        bad = max(start, damage.offset)
                        if start < bad:
                            attempts = self._ledger.attempts_of(start, bad) if self._attempted else b""
                            parts.append(entry.part(start, bad, have, attempts))
                        self._fail_damaged([(bad, end)], damage)
                        self._payloads.lose(bad, end)
                    start = end
        return tuple(parts)

    def _fail_damaged(self, runs: Sequence[Run], damage: DamagedRecord) -> None:
        event = self._ledger.decide_damaged(runs, self._clock())
        if event is None:
            return
        text = f"DamagedPayload: {damage.path} does not hold at byte {damage.position} what was written there"
        self._happen(event, {seq: Failure(0, b"", text) for lo, hi in event.runs for seq in range(lo, hi)})
        _log.error("%s: messages %s cannot be read and failed: %s", self._store.root, event.runs, damage)

    def hand_over(self, apart: int | None = None) -> HandOver:
        """Refused: a durable queue moves by being closed here and opened there."""
        raise TypeError(f"queue {self.uuid} is durable: close it, and open {self._store.root} where it is to be")

    # ----------------------------------------------------------------------------------------------------------- space

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
        is_empty = not shelf.live and len(shelf.segments) > 1 and shelf.segments[-1] is not self._emptied
        if self._rolled or is_empty or shelf.freed >= self._segment_bytes >> 1:
            self._rolled, shelf.freed = False, 0
            if is_empty:  # tried once for each segment, whether it works or not
                self._emptied = shelf.segments[-1]
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
                if free < SNAPSHOT_SHARE * self._last_size and store.shelf.live:
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
        self._covered = max(self._covered, self._store.log.next_rno)
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
        body = encode_snapshot(self._covered, state, self._payloads.batches(), self._payloads.singles())
        self._grown = 0
        try:
            self._store.write_snapshot(self._covered, body)
        except RecordTooLarge as problem:
            _log.warning("%s: no snapshot, opening will take longer: %s", self._store.root, problem)
            return
        self._last_size = len(body)
        self._snapshot_at = max(self._segment_bytes // INDEX_SHARE, SNAPSHOT_SHARE * len(body))

    # ------------------------------------------------------------------------------------------------------------- end

    @property
    def size_bytes(self) -> int:
        """What the directory takes."""
        with self._turn:
            return self._store.size_bytes

    def sync(self) -> None:
        """Everything that was done is on disk when this returns."""
        with self._operation():
            self._store.log.sync()
            self._store.index.sync()

    def close(self) -> None:
        """Write a snapshot, sync, give the lock back. May be called twice."""
        with self._turn:
            if self._closed:
                return
            self._stop_timer()
            if self._grown:
                self._tidy(self._snapshot)
                self._tidy(self._store.retire)
            self._closed = True
            self._store.close()
            super().close()

    def __enter__(self) -> DurableQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Dropped without close: files are let go, the next opener finds an unclean end."""
        if not getattr(self, "_closed", True) and hasattr(self, "_store"):
            self._stop_timer()
            self._store.let_go()

    def _sync_in_background(self) -> bool:
        return self._store.log.sync_quietly() and self._store.index.sync_quietly()


class _Operation:
    """A turn of a queue. A class, since a generator costs as much as the whole lease of one message."""

    __slots__ = ("_queue",)

    def __init__(self, queue: DurableQueue) -> None:
        self._queue = queue

    def __enter__(self) -> None:
        queue = self._queue
        queue._turn.take()
        if queue._closed:
            queue._turn.leave()
            raise ClosedError(queue._store.root)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        queue = self._queue
        owed = None
        try:
            if kind is None and queue._turn.depth == 1:
                owed, queue._owed = queue._owed, None
                shelf = queue._store.shelf
                if (
                    queue._grown >= queue._snapshot_at
                    or queue._rolled
                    or shelf.freed >= queue._segment_bytes >> 1
                    or (not shelf.live and len(shelf.segments) > 1 and shelf.segments[-1] is not queue._emptied)
                ):
                    queue._look_after()
        finally:
            queue._turn.leave()
        if owed is not None:
            queue._store.index.commit(owed)


def _steady(files: Files) -> Callable[[], int]:
    """The time of day, as it was when the queue was opened, and from there without steps."""
    ahead = files.wall_ns() - files.boot_ns()
    return lambda: ahead + files.boot_ns()


def _weakly(queue: DurableQueue) -> Callable[[], bool]:
    me = weakref.ref(queue)

    def act() -> bool:
        alive = me()
        return alive is not None and alive._sync_in_background()

    return act
