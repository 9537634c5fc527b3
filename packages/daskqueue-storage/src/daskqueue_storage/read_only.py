"""`ReadOnlyQueue`: what is in a queue's directory, without its lock, whoever has it open or left it behind.

A snapshot of the moment in which it was opened, or last `refresh`ed: not what the queue is now. Beside a living writer
it may hold puts that are not acknowledged yet, and does not know what memory alone knows: heartbeats, how far a lease
is, what clients have collected. After a kill, leases stand as they were written: who opens the queue next decides.

Not here: changing anything (`DurableQueue`), checking everything (`verify`).

Invariants: nothing in the directory changes. What is returned was verified, or is said to be damaged. A file that its
writer took away in between leads to another look, not to an error and not to a wrong answer.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from errno import ENOENT
from types import TracebackType
from typing import Final, Literal, NamedTuple

from daskqueue_core.batch import Keep, Kind, Run
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.names import TaskName
from daskqueue_core.payloads import Entry
from daskqueue_core.states import MessageFlag, MessageState
from daskqueue_core.stats import QueueStats
from daskqueue_storage.access import at_the_door, refusals
from daskqueue_storage.directory import check_safe, read_format, uuid_text
from daskqueue_storage.errors import AccessError, ClosedError, DamagedLog, DamagedRecord, NotAQueue
from daskqueue_storage.files import Files, OsFiles
from daskqueue_storage.replayed import LookedAt, Replayed, again_while_it_vanishes, has_vanished, look
from daskqueue_storage.report import RecoveryReport

__all__ = ["Message", "ReadOnlyQueue", "Result"]

_STATES: Final = tuple(state for state in MessageState if state is not MessageState.GONE)
_UNFINISHED: Final = (MessageState.SCHEDULED, MessageState.READY, MessageState.DELIVERED)
_PATIENCE: Final = 10


class Message(NamedTuple):
    """A message as it is in the queue. Of one that has ended, options and payload are not known any more."""

    seq: int
    state: MessageState
    client: int  # with `number` its name, unless it has a key
    number: int
    key: str | None = None
    kind: int = Kind.ITEM
    tags: tuple[str, ...] = ()
    priority: int = 0
    attempts: int = 0
    crashes: int = 0
    life: int = 0
    put_at: int = 0  # nanoseconds of the queue's clock
    owner: str = ""  # who holds it
    flags: MessageFlag = MessageFlag(0)
    body: bytes | None = None  # its own bytes, or the block it is in; None: not asked for, it ended, or is damaged
    offset: int = -1  # in a block: the element that it is
    damage: str = ""  # why there is no body


class Result(NamedTuple):
    """The kept result of one message. Opaque: what its consumer reported."""

    values: bytes  # of all `count` messages that were reported together
    position: int  # of this one among them
    count: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    text: str = ""  # of its error, for people
    blob: bytes = b""  # of its error


class _Payload(NamedTuple):
    """Of consecutive messages of one batch: a body each, or the block they are in, or why there is none."""

    bodies: Sequence[bytes | None] = ()
    block: bytes | None = None
    offset: int = -1
    damage: str = ""


_NOTHING: Final = _Payload()


class ReadOnlyQueue:
    """A look into a queue. Not thread-safe.

    Costs what opening costs, in time and memory. `uuid`: the queue that it must be. `on_damage="raise"` refuses one
    that is not whole.
    """

    report: RecoveryReport
    """What looking found."""

    @at_the_door
    def __init__(
        self,
        path: object,
        *,
        uuid: bytes | None = None,
        allow_shared: bool = False,
        on_damage: Literal["report", "raise"] = "report",
        files: Files | None = None,
    ) -> None:
        if on_damage not in ("report", "raise"):
            raise ValueError(f'on_damage is "report" or "raise", not {on_damage!r}')
        self._files: Files = files if files is not None else OsFiles()
        self._root = root = self._files.resolve(path)
        self._on_damage = on_damage
        self._queue: Replayed | None = None
        if not allow_shared:
            check_safe(self._files, root)
        if self._files.stat(root) is None:
            raise NotAQueue(root, "there is nothing")
        header, self._complaints = read_format(self._files, root)
        if header is None:
            raise NotAQueue(root, "it is empty")
        for part in ("log", "index"):
            if self._files.stat(f"{root}/{part}") is None:
                raise NotAQueue(root, f"its directory {part} is missing")
        if uuid is not None and header.uuid != uuid:
            raise NotAQueue(root, f"it is {uuid_text(header.uuid)}, not {uuid_text(uuid)}")
        self._uuid = header.uuid
        self._load()

    def refresh(self) -> None:
        """Look again."""
        self._held()
        with refusals(self._root):
            self._load()

    def _load(self) -> None:
        queue = again_while_it_vanishes(self._replay)
        if self._on_damage == "raise" and not queue.report.whole:
            queue.close()
            raise DamagedLog(self._root, queue.report)
        self._queue, self.report = queue, queue.report  # who still iterates over the one before may go on

    def _replay(self, is_last: bool) -> Replayed:
        found = look(self._files, self._root, self._uuid)
        store = LookedAt(self._files, self._root, self._uuid, found, self._complaints)
        queue = Replayed(store, self._files.wall_ns)
        if store.lacks_segments and queue.report.whole and not is_last and queue.without_payload():
            queue.close()
            raise FileNotFoundError(ENOENT, "retired since the index was read", f"{self._root}/log")
        return queue

    def _held(self) -> Replayed:
        if self._queue is None:
            raise ClosedError(self._root)
        return self._queue

    # ------------------------------------------------------------------------------------------------------ questions

    @property
    def uuid(self) -> str:
        """Which queue it is."""
        return uuid_text(self._uuid)

    @property
    def size_bytes(self) -> int:
        """Of all segments, as far as they count."""
        return self._held().size_bytes

    def stats(self) -> QueueStats:
        """Counts, as `DurableQueue.stats`."""
        return self._held().stats()

    def peek(self, limit: int = 1) -> list[Message]:
        """What a lease would bring that took the first that comes, with payloads. Nobody gets it by that."""

        for _ in range(_PATIENCE):
            queue = self._held()
            event = queue._ledger.decide_lease(limit, "", queue._clock(), 0)
            found = [] if event is None else list(self._messages(event.runs, bodies=True))
            if self._queue is queue:
                break  # else its files changed so much that it had to be looked at again
        return found

    def messages(self, state: MessageState | int | None = None, *, bodies: bool = False) -> Iterator[Message]:
        """All messages in `state` in the order of their numbers, without one all that are not gone.

        `bodies`: with the payloads of those that have not ended, and of dead letters. What ended since, so that its
        writer deleted the file, comes without.
        """
        ledger = self._held()._ledger
        states = _STATES if state is None else (MessageState(state),)
        if MessageState.GONE in states:
            raise ValueError("nothing is known of messages that are GONE")
        runs = sorted(run for each in states for run in ledger.runs_in(each))
        return self._messages(runs, bodies=bodies)

    def dead_letters(self, after: int = 0, limit: int | None = None) -> list[DeadLetter]:
        """Messages that failed for good, at most `limit`, from number `after` on."""
        return self._held().dead_letters(after, limit)

    def result(self, name: int | TaskName) -> Result | None:
        """What is kept of how a message ended, by its number, its key, or its client and that client's number."""
        queue = self._held()
        seq = name if isinstance(name, int) else queue._seq(name)
        entry = None if seq is None else queue._payloads.find(seq)
        if seq is None or entry is None or entry.batch.keep != Keep.KEEP:
            return None
        batch, index = entry.origin.batch, seq - entry.origin.base
        outcome = queue._kept.find(batch.client, batch.first, index)
        if outcome is None:
            return None
        position = index - outcome.index
        blob, text = next(((blob, text) for at, blob, text in outcome.errors if at == position), (b"", ""))
        return Result(bytes(outcome.values), position, outcome.count, text, bytes(blob))

    # -------------------------------------------------------------------------------------------------- the machinery

    def _messages(self, runs: Sequence[Run], *, bodies: bool) -> Iterator[Message]:
        queue = self._held()
        held = sorted((*run, lease.owner) for lease in queue._ledger.leases.by_id.values() for run in lease.runs)
        for entry, start, stop in queue._payloads.pieces(runs):
            if entry is None:  # nothing but their state is known any more
                yield from (Message(seq, queue._ledger.state(seq), 0, seq) for seq in range(start, stop))
                continue
            payload = self._payload(queue, entry, start, stop) if bodies else _NOTHING
            for seq in range(start, stop):
                yield _message(queue, entry, seq, held, payload, seq - start)

    def _payload(self, queue: Replayed, entry: Entry, start: int, stop: int) -> _Payload:
        """Of these messages of one batch, which are in one state."""
        state = queue._ledger.state(start)
        if state is MessageState.FAILED:
            letters = [queue._letters.get(seq) for seq in range(start, stop)]
            return _Payload([b"" if each is None else each.body for each in letters])
        if state not in _UNFINISHED:
            return _NOTHING
        try:
            return _shipped(entry, start, stop)
        except DamagedRecord as damage:
            if not damage.path.startswith(self._root) or self._files.stat(damage.path) is not None:
                return _Payload(damage=str(damage))
        except OSError as problem:
            if not has_vanished(problem):
                raise AccessError(self._root, problem) from problem
        return self._moved(start, stop)

    def _moved(self, start: int, stop: int) -> _Payload:
        """Of messages whose file was deleted since: from where they are now, unless they ended."""
        for _ in range(_PATIENCE):
            self.refresh()
            payloads = self._held()._payloads
            entry = payloads.find(start)
            if entry is None or not entry.live or payloads.stop(entry, start, stop) != stop:
                return _NOTHING
            try:
                return _shipped(entry, start, stop)
            except DamagedRecord as damage:
                if self._files.stat(damage.path) is not None:
                    return _Payload(damage=str(damage))
            except OSError as problem:
                if not has_vanished(problem):
                    raise AccessError(self._root, problem) from problem
        return _NOTHING

    # ------------------------------------------------------------------------------------------------------------- end

    def close(self) -> None:
        """Let go of the files. May be called twice."""
        if self._queue is not None:
            self._queue.close()
            self._queue = None

    def __enter__(self) -> ReadOnlyQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _shipped(entry: Entry, start: int, stop: int) -> _Payload:
    part = entry.part(start, stop, ())
    if part.lengths:
        return _Payload([bytes(body) for body in part.bodies()])
    return _Payload(block=bytes(part.body or b""), offset=part.offset)


def _message(
    queue: Replayed, entry: Entry, seq: int, held: Sequence[tuple[int, int, str]], payload: _Payload, at: int
) -> Message:
    ledger, batch = queue._ledger, entry.batch
    state = ledger.state(seq)
    owner = ""
    if state is MessageState.DELIVERED:
        row = bisect_right(held, (seq, sys.maxsize)) - 1
        owner = held[row][2] if row >= 0 and seq < held[row][1] else ""
    return Message(
        seq,
        state,
        batch.client,
        batch.first + seq - entry.base,
        ledger.key_of(seq),
        batch.kind,
        batch.tags,
        batch.priority,
        ledger.attempts(seq),
        ledger.crashes(seq),
        entry.life,
        entry.put_time(seq),
        owner,
        ledger.flags(seq),
        payload.bodies[at] if payload.bodies else payload.block,
        payload.offset + at if payload.offset >= 0 else -1,
        payload.damage,
    )
