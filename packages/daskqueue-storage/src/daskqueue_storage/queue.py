"""`DurableQueue`: core's queue with a journal in a directory.

Every operation is core's own: decide, record, take, reply. A put's messages may be leased when the put is as durable as
the sync policy says, and an operation returns when what it recorded is. Payloads stay on disk (`keydir`).

Not here: rules about messages (core), files (`store`); writing down (`journal`), opening again (`restoring`), snapshots
and room on the disk (`upkeep`).

Invariants: what is replayed is what was recorded, so a queue that is opened again holds what it held, up to what a
power failure may take by the sync policy; then messages are delivered again, never lost. A message whose bytes do not
verify fails as a dead letter, and the others go on. Nothing is told, by whichever thread, before it is as safe as the
sync policy says.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

from daskqueue_core.batch import Batch, Part, Run, single
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.handover import HandOver
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Cursor, Outcome, Outcomes
from daskqueue_core.protocols import DEFAULT_TTL, REPLY_BYTES, Accepted, Demand, Lease, PutAnswer
from daskqueue_core.queue import TransientQueue
from daskqueue_core.stats import QueueStats
from daskqueue_storage.access import at_the_door
from daskqueue_storage.directory import uuid_text
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.files import Files, OsFiles
from daskqueue_storage.format import MAX_COUNT
from daskqueue_storage.keydir import DiskPayloads
from daskqueue_storage.report import RecoveryReport
from daskqueue_storage.store import QueueStore
from daskqueue_storage.turn import Turn
from daskqueue_storage.upkeep import MaintainedQueue
from daskqueue_storage.writer import check_sync

__all__ = ["DurableQueue"]

_F = TypeVar("_F", bound=Callable[..., Any])


def _serialised(method: _F) -> _F:
    """An operation of core's queue, in turn, that returns when what it recorded is safe."""

    @wraps(method)
    def operation(self: DurableQueue, *args: Any, **options: Any) -> Any:
        with self._in_turn:
            return method(self, *args, **options)

    return cast(_F, operation)


class DurableQueue(MaintainedQueue):
    """A queue in a directory. Thread-safe; one process at a time has it open.

    When `put` returns, the message is: `sync="batch"`: on disk; `sync=0.5`: with the operating system, on disk half a
    second later; `sync="none"`: with the operating system. So are results; bare acks and deliveries only if `ack_sync`,
    since losing one costs no more than a second run. `owners` keep their leases; what others held is ready again, and
    of those that are known to be `lost` it is suspect, as if the queue had lived on.
    """

    # It has at most 30 attributes: Python finds those of an object with more, and its methods, more slowly.

    report: RecoveryReport
    """What opening found."""

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
        self._turn = Turn()
        self._maintain(segment_bytes)
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
        store.shelf.much = segment_bytes >> 1
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
            self._payloads = DiskPayloads(store.shelf)
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

    # ------------------------------------------------------------------------------------------------------ operations

    put_many = _serialised(TransientQueue.put_many)
    put_block = _serialised(TransientQueue.put_block)
    has_outcomes = _serialised(TransientQueue.has_outcomes)
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
    depth = _serialised(TransientQueue.depth)
    validate = _serialised(TransientQueue.validate)

    def put(self, body: bytes) -> int:
        """As `TransientQueue.put`."""
        batch = single(body)
        with self._in_turn:
            return self._put_local(batch)

    def admit(self, batches: Sequence[Batch], *, producer: int | None = None, number: int = 0) -> PutAnswer:
        """As `TransientQueue.admit`. What another thread is putting under this number, or these keys, is safe too."""
        with self._in_turn:
            before = self._ledger.puts
            answer = super().admit(batches, producer=producer, number=number)
            if isinstance(answer, Accepted) and self._putting is not None:
                new = answer.base >= before and answer.count == sum([batch.count for batch in batches])
                if not new:
                    self._await_put()
            return answer

    def stats(self) -> QueueStats:
        """As `TransientQueue.stats`, with what the files are."""
        with self._in_turn:
            store, lost = self._store, self.report.lost_records
            return super().stats()._replace(lost=lost, bytes=store.size_bytes, segments=store.segments)

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
        if limit > MAX_COUNT:
            limit = MAX_COUNT
        with self._in_turn:
            while True:
                lease = self._lease(limit, owner, request, ttl, demand, once, suspects)
                if lease is None or lease.parts:
                    return lease

    def ack(self, lease: int | Lease, ids: Sequence[int] | None = None) -> int:
        """As `TransientQueue.ack`."""
        with self._in_turn:
            return TransientQueue.ack(self, lease, ids)

    def _parts(self, runs: Sequence[Run], have: Collection[int]) -> tuple[Part, ...]:
        try:
            return TransientQueue._parts(self, runs, have)
        except DamagedRecord:
            return self._undamaged_parts(runs, have)

    def _undamaged_parts(self, runs: Sequence[Run], have: Collection[int]) -> tuple[Part, ...]:
        """Of messages some of which cannot be read: these fail."""
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

    def hand_over(self, apart: int | None = None) -> HandOver:
        """Refused: a durable queue moves by being closed here and opened there."""
        raise TypeError(f"queue {self.uuid} is durable: close it, and open {self._store.root} where it is to be")

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
