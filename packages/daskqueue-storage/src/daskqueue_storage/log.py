"""`SegmentedLog`: a durable list of byte strings that is appended at one end and forgotten at the other.

The composition of lock, recovery, writer and reader for what has no states: records are PUT. A message's offset is its
number; numbers rise, are never given twice, and may be skipped (after an unclean end). Payloads are opaque.

Not here: leases, acknowledgements, results (a queue's), several writers (nobody's).
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from struct import Struct
from types import TracebackType
from typing import Final, Literal, NamedTuple, overload

from daskqueue_storage.access import at_the_door
from daskqueue_storage.body import draft, draft_messages
from daskqueue_storage.directory import check_safe, create_layout, read_format, remove_garbage, uuid_text
from daskqueue_storage.errors import (
    ClosedError,
    DamagedLog,
    DamagedRecord,
    DiskFullError,
    NotAQueue,
    ReadOnlyError,
    StorageError,
)
from daskqueue_storage.files import Files, OsFiles, remove_quietly
from daskqueue_storage.format import RecordType
from daskqueue_storage.lock import Lease, acquire
from daskqueue_storage.reader import LogReader
from daskqueue_storage.recovery import (
    Survey,
    expect_clean,
    extend,
    survey,
    survey_beside_writer,
)
from daskqueue_storage.report import Damage, RecoveryReport
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.writer import LogWriter, check_sync

__all__ = ["LogStats", "SegmentedLog"]

_log = logging.getLogger("daskqueue_storage")
_PART: Final = "log"
_U64 = Struct("<Q")


class LogStats(NamedTuple):
    """What there is at one moment."""

    uuid: str
    epoch: int  # of this writer; 0 when reading only
    first: int  # the first offset that may exist
    end: int  # the offset behind the last message
    messages: int
    segments: int
    size_bytes: int
    syncs: int
    damaged: tuple[Damage, ...]  # found since opening, by opening too


class SegmentedLog:
    """An append-only log in a directory. Thread-safe; one writer at a time, any number of readers.

    `mode="rw"` takes the writer's lock, `mode="ro"` none. When `append` returns, the message is
    `sync="batch"`: on disk; `sync=0.5`: with the operating system, on disk half a second later; `sync="none"`: with the
    operating system. `retain_bytes` and `retain_s` let whole old segments go.
    """

    report: RecoveryReport
    """What opening found."""

    @at_the_door
    def __init__(
        self,
        path: object,
        *,
        mode: Literal["rw", "ro"] = "rw",
        sync: str | float = "batch",
        segment_bytes: int = 64 << 20,
        lock_ttl: float = 30.0,
        wait: float = 0.0,
        retain_bytes: int | None = None,
        retain_s: float | None = None,
        on_damage: Literal["report", "raise"] = "report",
        create: bool = True,
        uuid: bytes | None = None,
        owner: str = "",
        allow_shared: bool = False,
        files: Files | None = None,
    ) -> None:
        if mode not in ("rw", "ro"):
            raise ValueError(f'mode is "rw" or "ro", not {mode!r}')
        if on_damage not in ("report", "raise"):
            raise ValueError(f'on_damage is "report" or "raise", not {on_damage!r}')
        if segment_bytes < 4096:
            raise ValueError(f"segment_bytes is at least 4096, not {segment_bytes}")
        if not 0 < lock_ttl < 1e6 or not wait >= 0:
            raise ValueError(f"lock_ttl is positive and wait not negative, not {lock_ttl} and {wait}")
        if uuid is not None and len(uuid) != 16:
            raise ValueError(f"a uuid has 16 bytes, not {len(uuid)}")
        self._files: Files = files if files is not None else OsFiles()
        self._root = self._files.resolve(path)
        self._sync = check_sync(sync)
        self._segment_bytes = segment_bytes
        self._retain_bytes = retain_bytes
        self._retain_s = retain_s
        self._on_damage = on_damage
        self._closed = False
        self._lease: Lease | None = None
        self._writer: LogWriter | None = None
        self._stop_timer: Callable[[], None] = lambda: None
        self._visible_lock = threading.Lock()
        self._last_retained: SegmentInfo | None = None
        if not allow_shared:
            check_safe(self._files, self._root)
        if mode == "ro":
            self._open_to_read(uuid)
        else:
            self._open_to_write(uuid, create, lock_ttl, owner, wait)

    # --------------------------------------------------------------------------------------------------------- opening

    def _open_to_write(self, uuid: bytes | None, create: bool, lock_ttl: float, owner: str, wait: float) -> None:
        files, root = self._files, self._root
        if files.stat(root) is None:
            if not create:
                raise NotAQueue(root, "there is nothing, and create=False")
            try:
                files.make_dir(root)
            except FileExistsError:
                pass  # somebody was faster, and the lock decides
        self._check_format(uuid, create)  # before anything is changed
        self._lease = acquire(files, root, ttl_s=lock_ttl, owner=owner, wait_s=wait)
        try:
            header, complaints = read_format(files, root)
            if header is None or complaints == ["missing"]:
                fresh = header.uuid if header else uuid or files.random_bytes(16)
                header = create_layout(files, root, (_PART,), fresh)
            remove_garbage(files, root)
            self._uuid = header.uuid
            found = survey(files, root, _PART, self._uuid, distrust_cache=self._lease.after_failure)
            if self._lease.after_clean:
                found = expect_clean(found, f"{root}/{_PART}")
            self._accept(found, complaints)
            self._reader = LogReader(files, root, found.segments)
            self._writer = LogWriter(
                files,
                root,
                _PART,
                uuid=self._uuid,
                lease=self._lease,
                # A stopped predecessor may wake up and begin a segment: ours must be there first.
                origin=found.origin._replace(settled=found.origin.settled and self._lease.after_release),
                sync=self._sync,
                segment_bytes=self._segment_bytes,
                on_segment=self._reader.add,
            )
            for info in found.segments:
                info.sealed = True  # our EPOCH says where each ends
            self._visible = self._writer.next_seq
            self._writer.verify()
            self._lease.begun()
            for path in found.retired:
                remove_quietly(files, path)
            if isinstance(self._sync, float):
                self._stop_timer = files.every(self._sync, _weakly(self))
        except BaseException:
            if self._writer is not None:
                self._writer.dispose()
            self._lease.release()
            raise

    def _open_to_read(self, uuid: bytes | None) -> None:
        if self._files.stat(self._root) is None:
            raise NotAQueue(self._root, "there is nothing")
        self._uuid, complaints = self._check_format(uuid, False)
        self._reader = LogReader(self._files, self._root, [], on_vanished=self._load)
        self._load(complaints)

    def _load(self, complaints: Sequence[str] = ()) -> None:
        """Everything from the beginning. A file that vanishes meanwhile was retired: look again."""
        for attempt in range(10):
            try:
                names = set(self._files.list_dir(f"{self._root}/{_PART}"))
                found = survey_beside_writer(self._files, self._root, _PART, self._uuid)
                break
            except FileNotFoundError:
                if attempt == 9:
                    raise
        self._accept(found, complaints)
        self._names = names
        self._reader.replace(found.segments)
        self._visible = found.segments[-1].next_seq if found.segments else 0

    def _check_format(self, uuid: bytes | None, create: bool) -> tuple[bytes, list[str]]:
        header, complaints = read_format(self._files, self._root)
        if header is None:
            if not create:
                raise NotAQueue(self._root, "it is empty, and nothing may be created")
            return b"", []
        if self._files.stat(f"{self._root}/{_PART}") is None:
            raise NotAQueue(self._root, f"its directory {_PART} is missing")
        if uuid is not None and header.uuid != uuid:
            raise NotAQueue(self._root, f"it is {uuid_text(header.uuid)}, not {uuid_text(uuid)}")
        return header.uuid, complaints

    def _accept(self, found: Survey, complaints: Sequence[str]) -> None:
        report = found.report
        if "damaged" in complaints:
            report = report._replace(damaged=(Damage(f"{self._root}/FORMAT", 0, 64, 0), *report.damaged))
        if "missing" in complaints:
            report = report._replace(missing_files=(f"{self._root}/FORMAT", *report.missing_files))
        self.report = report
        if not report.whole:
            if self._on_damage == "raise":
                raise DamagedLog(self._root, report)
            _log.warning("%s: %s", self._root, report)
        elif report.tail_bytes:
            _log.info("%s: %s, left by a crash and never acknowledged", self._root, report)

    # --------------------------------------------------------------------------------------------------------- writing

    def append(self, data: bytes) -> int:
        """Add a message; its offset. Returns when the sync policy says so."""
        return self.append_many((data,)).start

    def append_many(self, batch: Sequence[bytes]) -> range:
        """Add messages: one write, one checksum, all or nothing, however the machine may end. Their offsets."""
        if isinstance(batch, (bytes, bytearray, memoryview, str)):
            raise TypeError(f"append_many takes a sequence of bytes, not {type(batch).__name__}; append takes one")
        record = draft_messages(batch)
        writer = self._writing()
        if not record.count:
            return range(writer.next_seq, writer.next_seq)
        placed = writer.append(record)
        if self._sync != "batch":
            self._show(placed.base + record.count)
        writer.commit(placed)
        self._show(placed.base + record.count)
        if self._retain_bytes is not None or self._retain_s is not None:
            self._retain(placed.segment)
        return range(placed.base, placed.base + record.count)

    def sync(self) -> None:
        """Everything appended is on disk when this returns."""
        self._writing().sync()

    def truncate_before(self, offset: int) -> int:
        """Let messages before `offset` go, by whole segments; the first offset that remains."""
        writer = self._writing()
        with writer.lock:
            segments = self._reader.segments
            doomed = 0
            while doomed < len(segments) and segments[doomed].sealed and segments[doomed].next_seq <= offset:
                doomed += 1
            return self._let_go(writer, doomed)

    def _let_go(self, writer: LogWriter, count: int) -> int:
        """Delete the first `count` segments: record it, sync, verify, then unlink."""
        if not count:
            return self._reader.first
        writer.begin()  # something must remain to say so
        doomed, kept = self._reader.segments[:count], self._reader.segments[count]
        numbers = [(info.segno, info.segno + 1) for info in doomed]
        record = draft(RecordType.RETIRED, runs=_merged(numbers), block=_U64.pack(kept.base_rno))
        try:
            writer.append(record)
        except DiskFullError:
            # Room is what this is to make. A crash in between costs a false alarm about missing files, no message.
            writer.sync()
            self._unlink(doomed)
            writer.append(record)
        writer.start = kept.base_rno
        writer.sync()
        self._reader.drop(count)
        self._unlink(doomed)
        return self._reader.first

    def _unlink(self, doomed: Sequence[SegmentInfo]) -> None:
        for info in doomed:
            remove_quietly(self._files, info.path)

    def _retain(self, current: SegmentInfo) -> None:
        """After each new segment: what is too much or too old goes. What was appended is safe whatever fails."""
        writer = self._writer
        if current is self._last_retained or writer is None:
            return
        self._last_retained = current
        try:
            with writer.lock:
                self._let_go(writer, self._too_much())
        except (StorageError, OSError) as problem:
            _log.warning("%s: old segments stay until the next one is full: %s", self._root, problem)

    def _too_much(self) -> int:
        """How many of the first segments may go."""
        segments = self._reader.segments
        total = sum(info.valid for info in segments)
        oldest = self._files.wall_ns() - round((self._retain_s or 0) * 1e9)
        for count, info in enumerate(segments[:-1]):
            too_many = self._retain_bytes is not None and total - info.valid >= self._retain_bytes
            too_old = self._retain_s is not None and 0 < info.last_time < oldest
            if not info.sealed or not (too_many or too_old):
                return count
            total -= info.valid
        return max(0, len(segments) - 1)

    def _show(self, end: int) -> None:
        with self._visible_lock:
            self._visible = max(self._visible, end)

    def _writing(self) -> LogWriter:
        if self._closed:
            raise ClosedError(self._root)
        if self._writer is None:
            raise ReadOnlyError(self._root)
        return self._writer

    # --------------------------------------------------------------------------------------------------------- reading

    def read(self, offset: int, n: int = 1) -> list[bytes]:
        """Up to `n` messages from `offset` on: fewer before the end or before a gap, none at the end.

        `OffsetError` if that offset has no message, `DamagedRecord` if it cannot be read; both say where to go on.
        """
        if offset < 0 or n < 0:
            raise ValueError(f"offset and n are not negative, not {offset} and {n}")
        found: list[bytes] = []
        end = self._end(offset + n)
        while len(found) < n and offset < end:
            try:
                loaded, next_offset = self._reader.load(offset)
            except DamagedRecord:
                if found:
                    break
                raise
            if loaded is None:
                if found:
                    break
                raise self._reader.missing(offset, min(next_offset, end))
            skip = offset - loaded.base
            found += loaded.payloads[skip : skip + n - len(found)]
            offset = next_offset
        return found

    @overload
    def scan(self, start: int = 0, *, timestamps: Literal[False] = False) -> Iterator[tuple[int, bytes]]: ...
    @overload
    def scan(self, start: int = 0, *, timestamps: Literal[True]) -> Iterator[tuple[int, bytes, int]]: ...
    def scan(
        self, start: int = 0, *, timestamps: bool = False
    ) -> Iterator[tuple[int, bytes]] | Iterator[tuple[int, bytes, int]]:
        """(offset, message) from `start` to the present end; with the time it was appended, in ns, if asked.

        Damaged records are skipped, logged and counted in `stats().damaged`; with on_damage="raise" they raise.
        """
        if start < 0:
            raise ValueError(f"start is not negative, not {start}")
        rows = ((range(at, at + len(part)), part, time) for at, part, time in self._scan(start))
        if timestamps:
            return chain.from_iterable(zip(offsets, part, repeat(time)) for offsets, part, time in rows)
        return chain.from_iterable(zip(offsets, part) for offsets, part, _ in rows)

    def _scan(self, start: int) -> Iterator[tuple[int, list[bytes], int]]:
        """The messages of each record: the first offset, what there is from it on, the time."""
        end = self._end(None)
        start = max(start, self._reader.first)
        for record in self._reader.records(start, end):
            if isinstance(record, DamagedRecord):
                if self._on_damage == "raise":
                    raise record
                _log.warning("%s", record)
                continue
            first = max(start, record.base)
            yield first, record.payloads[first - record.base : end - record.base], record.time

    def _end(self, wanted: int | None) -> int:
        """The offset behind the last message that may be seen; a reader looks whether there is more than it knows."""
        if self._closed:
            raise ClosedError(self._root)
        if self._writer is None and (wanted is None or wanted > self._visible):
            self._refresh()
        return self._visible

    def _refresh(self) -> None:
        names = set(self._files.list_dir(f"{self._root}/{_PART}"))
        segments = self._reader.segments
        if names != self._names or not segments or segments[-1].sealed:
            if names != self._names:
                self._load()
            return
        handle = self._files.open(segments[-1].path)
        try:
            extend(self._files, handle, segments[-1])
        finally:
            self._files.close(handle)
        self._show(segments[-1].next_seq)

    # ----------------------------------------------------------------------------------------------------- all the rest

    def stats(self) -> LogStats:
        """Numbers."""
        end = self._end(None)
        segments = list(self._reader.segments)
        damaged = list(self.report.damaged)
        damaged += [item for item in self._reader.damaged if item not in damaged]
        return LogStats(
            uuid_text(self._uuid),
            self._lease.epoch if self._lease is not None else 0,
            self._reader.first,
            end,
            sum(info.messages for info in segments),
            len(segments),
            sum(info.valid for info in segments),
            self._writer.syncs if self._writer is not None else 0,
            tuple(damaged),
        )

    def close(self) -> None:
        """Write the end, sync, give the lock back. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._stop_timer()
        clean = False
        try:
            if self._writer is not None:
                clean = self._writer.close()
        finally:
            if self._writer is not None:
                self._writer.dispose()
            if self._lease is not None:
                self._lease.release(clean=clean)
            self._reader.close()

    def __enter__(self) -> SegmentedLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Dropped without close: files are let go, the heartbeat ends, the next opener finds an unclean end."""
        if not getattr(self, "_closed", True):
            self._stop_timer()
            if self._writer is not None:
                self._writer.dispose()
            if hasattr(self, "_reader"):
                self._reader.close()

    def _sync_in_background(self) -> bool:
        return self._writer is not None and self._writer.sync_quietly()


def _weakly(log: SegmentedLog) -> Callable[[], bool]:
    me = weakref.ref(log)

    def act() -> bool:
        alive = me()
        return alive is not None and alive._sync_in_background()

    return act


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in runs:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
