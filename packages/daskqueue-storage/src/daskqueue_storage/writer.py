"""The writer of one log: gives records their place, rolls segments, seals what predecessors left, commits.

A log is the sequence of records in `log/` (or `index/`). This module knows positions, numbers and epochs; what the
records say is its caller's business. Used by `SegmentedLog`, and once for each log of a queue.

Invariants, in the order in which they are relied upon:
- Record numbers rise by one, in the whole life of the log. Memory changes only after a complete write.
- Nothing is written in an epoch before its EPOCH record is durable under a durable name; that record says what of the
  predecessors counts.
- A segment's ROLL is durable before the next segment exists, under every sync policy.
- `commit` returns after: written, synced as the policy says, lease verified. In this order: whoever took over since
  read the directory after our sync or seals it without what we did not sync, and then we do not get past the last step.
- With `reserve_bytes` a record that fits in them finds room, also on a disk that is full, where the file system can
  promise it; `is_short` says that they could not be made whole again. What is more than they hold is refused before
  any of it is written, so that they stay for what is smaller.
- At most MAX_COUNT message numbers are not durable; that is how many the next epoch skips after an unclean end, so that
  no number is ever given twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple
from zlib import crc32

from daskqueue_storage.body import Draft
from daskqueue_storage.commit import Commit, SyncFailed
from daskqueue_storage.directory import segment_path
from daskqueue_storage.errors import DiskFullError, RecordTooLarge, StorageError, WriterFailedError
from daskqueue_storage.files import FULL_DISK, Files
from daskqueue_storage.format import (
    FILE_HEADER_SIZE,
    MAX_BODY,
    MAX_COUNT,
    RECORD_HEADER_SIZE,
    FileHeader,
    FileKind,
    RecordHeader,
    RecordType,
    Seal,
    SealedSegment,
    encode_epoch,
    encode_header,
    encode_seal,
    pack_header,
    record_salt,
)
from daskqueue_storage.format import SEAL_SIZE as _SEAL_SIZE
from daskqueue_storage.lock import Lease
from daskqueue_storage.segment import RecordIndex, SegmentFile, SegmentInfo

__all__ = ["LogWriter", "Origin", "Placed", "check_sync"]

_log = logging.getLogger("daskqueue_storage")
_MAX_SEGMENT = 2**32 - 8
_NEVER: Final = 2**64
FLUSH_BYTES: Final = 8 << 20
"""When so much is written and not synced, that begins in the background: a segment's end waits for all of it."""
_PUT: Final = int(RecordType.PUT)
_HOLDS_MESSAGES: Final = (_PUT, int(RecordType.COPY))
_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor
_KINDS = {"log": FileKind.LOG_SEGMENT, "index": FileKind.INDEX_SEGMENT}


class Origin(NamedTuple):
    """Where a writer goes on: what recovery found."""

    next_segno: int
    next_rno: int
    next_seq: int
    last_time: int
    start: int  # the number of the first record that is not retired
    settled: bool  # nothing to seal, nobody to fence: the first segment can wait until there is something to write
    unsealed: list[SealedSegment]  # a new segment must seal them before anything is served


class Placed(NamedTuple):
    """Where a record went."""

    segment: SegmentInfo
    pos: int
    rno: int
    base: int


def check_sync(sync: str | float) -> str | float:
    """A sync policy, or `ValueError`."""
    if isinstance(sync, str):
        if sync in ("none", "batch"):
            return sync
    elif 0 < sync < float("inf"):
        return float(sync)
    raise ValueError(f'sync is "batch", "none" or a positive number of seconds, not {sync!r}')


class LogWriter:
    """Appends to one log of one directory. Thread-safe. `lock` may be held by the caller around several appends."""

    def __init__(
        self,
        files: Files,
        root: str,
        part: str,
        *,
        uuid: bytes,
        lease: Lease,
        origin: Origin,
        sync: str | float,
        segment_bytes: int,
        reserve_bytes: int = 0,
        on_segment: Callable[[SegmentInfo], None] = lambda info: None,
    ) -> None:
        self.lock = threading.RLock()
        self._files = files
        self._wall_ns = files.wall_ns
        self._root = root
        self._part = part
        self._directory = f"{root}/{part}"
        self._uuid = uuid
        self._lease = lease
        self._sync = sync
        self._segment_bytes = min(segment_bytes, _MAX_SEGMENT)
        self._reserve_bytes = reserve_bytes
        self.is_short = False
        """The disk had no room for all of the reserve."""
        self._on_segment = on_segment
        self._commit = Commit(files.sync)
        self._file: SegmentFile | None = None
        self._first_segno = self._next_segno = origin.next_segno
        self._next_rno = origin.next_rno
        self._last_time = origin.last_time
        self._unsealed = origin.unsealed
        self._durable_seq = origin.next_seq
        self._flush_at = _NEVER
        self.segment: SegmentInfo | None = None
        """The one that grows."""
        self.next_seq = origin.next_seq
        self.start = origin.start
        if not origin.settled:
            self._begin_epoch()

    # ------------------------------------------------------------------------------------------------------- writing

    def append(self, draft: Draft) -> Placed:
        """Write a record. New messages get their numbers here. Not durable yet: see `commit`."""
        kind, flags, small, count, base, aux, parts, blen, bcrc = draft
        if blen > MAX_BODY:  # so it always fits a segment of its own
            raise RecordTooLarge(self._root, blen, MAX_BODY, "bytes")
        if count > MAX_COUNT:
            raise RecordTooLarge(self._root, count, MAX_COUNT, "messages")
        with self.lock:
            try:
                commit = self._commit
                if commit.failure is not None:
                    raise self._failed(commit.failure)
                if kind == _PUT:
                    base = self.next_seq
                    if base + count - self._durable_seq > MAX_COUNT:
                        self._make_durable()
                size = RECORD_HEADER_SIZE + ((blen + 7) & ~7)
                file = self._file
                if file is None or file.end + size > file.room or file.info.epoch != self._lease.epoch:
                    file = self._make_room(size)
                info, pos, rno = file.info, file.end, self._next_rno
                wall_ns, last_time = self._wall_ns, self._last_time
                time = wall_ns()
                if time < last_time:
                    time = last_time
                self._last_time = time
                fields = (kind, flags, small, count, pos, rno, base, time, info.epoch, blen, bcrc, aux)
                file.append((pack_header(fields, info.salt), *parts), RECORD_HEADER_SIZE + blen)
                info.last_rno, info.last_time = rno, time
                self._next_rno = rno + 1
                if kind == _PUT:
                    info.messages += count
                    self.next_seq = info.next_seq = base + count
                commit.wrote(rno, file.handle)
                if info.index is not None and kind in _HOLDS_MESSAGES:
                    info.index.append(pos, base, count)
                if file.end >= self._flush_at:
                    self._flush_at = file.end + FLUSH_BYTES
                    self._files.soon(commit.flush)
                return _new(Placed, (info, pos, rno, base))
            except SyncFailed as problem:
                raise self._failed(problem.__cause__) from problem.__cause__
            except OSError as problem:
                raise self._refused(problem) from problem

    def commit(self, placed: Placed) -> None:
        """Return when the record is what the sync policy calls written, and we still are the writer."""
        if self._sync == "batch":
            self._wait(placed.rno)
        self.verify()

    def sync(self) -> None:
        """Everything that is written is durable when this returns, under any policy."""
        self._wait(self._commit.written)
        self.verify()

    def sync_quietly(self) -> bool:
        """For a timer: whether it should go on. A failure is told to the next who writes."""
        try:
            self._wait(self._commit.written)
        except StorageError as problem:
            _log.error("%s", problem)
            return False
        return True

    def verify(self) -> None:
        """`FencedError` unless the lease holds. One that lapsed unnoticed by others is taken again, as a new epoch.

        What was written before that counts: nobody but us could have, and the next record seals it.
        """
        if self._lease.verify():
            return
        with self.lock:
            if not self._lease.verify():
                try:
                    self._lease.retake()
                except OSError as problem:
                    # The record before this is written, so "nothing was changed" would be a lie.
                    self._commit.failure = self._commit.failure or problem
                    raise self._failed(problem) from problem

    def close(self) -> bool:
        """End the log cleanly, so that the next opener need not scan; whether that could be done."""
        with self.lock:
            if self._file is None:
                # Nothing was written since it was found clean; but a name that was begun in vain may come back.
                return self._next_segno == self._first_segno
            if self._commit.failure is not None:
                return False
            try:
                self.verify()
                self._room_for(0)
                self._seal(RecordType.CLOSE)
                self._commit.wait(self._commit.written)
                self._file.trim()
            except (SyncFailed, StorageError, OSError) as problem:
                _log.warning("%s was not closed cleanly, the next opener will scan its end: %s", self._root, problem)
                return False
            return True

    def dispose(self) -> None:
        """Let go of the file, whatever became of it."""
        with self.lock:
            if self._file is not None:
                self._commit.end(partial(self._files.close, self._file.handle))
                self._file = self.segment = None

    def begin(self) -> None:
        """There is a segment to write to, behind all that is sealed."""
        with self.lock:
            try:
                self._room_for(0)
            except SyncFailed as problem:
                raise self._failed(problem.__cause__) from problem.__cause__
            except OSError as problem:
                raise self._refused(problem) from problem

    def roll(self) -> None:
        """End the segment that grows: what comes next stands in another. One without records of its own goes on."""
        with self.lock:
            try:
                file = self._room_for(0)
                if file.info.last_rno > file.info.base_rno:
                    self._roll(file)
            except SyncFailed as problem:
                raise self._failed(problem.__cause__) from problem.__cause__
            except OSError as problem:
                raise self._refused(problem) from problem

    # --------------------------------------------------------------------------------------------------- the reserve

    def has_reserve(self) -> bool:
        """Whether it is whole, or can be made so now."""
        if self.is_short:
            with self.lock:
                if self._file is not None:
                    self._claim(self._file, 0)
        return not self.is_short

    def check_room(self, size: int) -> None:
        """`DiskFullError` unless a new segment with a record of `size` finds room, if need be in the reserve."""
        with self.lock:
            file = self._file
            if file is None or not self._reserve_bytes:
                return  # nothing is known before it is tried
            needed = FILE_HEADER_SIZE + 2 * _SEAL_SIZE + size + self._reserve_bytes // 64  # blocks are not cut to fit
            self._claim(file, needed)
            if self.is_short and file.end + needed > file.reserved:
                raise DiskFullError(self._root, "no room for what would free some")

    def lend(self) -> None:
        """Give the reserve back to the disk, until the next record: so that something can be done that frees more."""
        with self.lock:
            if self._file is not None and self._reserve_bytes:
                self._file.trim()
                self.is_short = True

    def _claim(self, file: SegmentFile, size: int) -> None:
        """Room for a record of `size` and behind it the reserve, or as much of that as there is."""
        rest = self._reserve_bytes
        while rest > self._reserve_bytes >> 6 and file.end + size + rest > file.reserved:
            try:
                if not file.claim(size + rest):
                    self._reserve_bytes = 0  # it cannot be known here: each write finds out
                break
            except OSError:
                rest >>= 1
        self.is_short = file.reserved < file.end + size + self._reserve_bytes and self._reserve_bytes > 0

    @property
    def next_rno(self) -> int:
        """The number of the next record."""
        return self._next_rno

    @property
    def failure(self) -> OSError | None:
        """Why nothing can be written any more."""
        return self._commit.failure

    @property
    def syncs(self) -> int:
        """How often the disk was asked."""
        return self._commit.syncs

    # ------------------------------------------------------------------------------------------------- the machinery

    def _header(self, draft: Draft, base: int, pos: int) -> RecordHeader:
        self._last_time = max(self._last_time, self._files.wall_ns())
        return RecordHeader(
            draft.type,
            draft.flags,
            draft.small,
            draft.count,
            pos,
            self._next_rno,
            base,
            self._last_time,
            self._lease.epoch,
            draft.blen,
            draft.bcrc,
            draft.aux,
        )

    def _wrote(self, file: SegmentFile, header: RecordHeader) -> None:
        file.info.last_rno = header.rno
        file.info.last_time = header.time
        self._next_rno = header.rno + 1
        self._commit.wrote(header.rno, file.handle)

    def _make_room(self, size: int) -> SegmentFile:
        """As `_room_for`, and the reserve is there behind a record of that size, or as much of it as there is."""
        file = self._room_for(size)
        if self._reserve_bytes and file.end + size + self._reserve_bytes // 2 > file.reserved:
            self._claim(file, size)
            if self.is_short and file.end + size > file.reserved:
                file.claim(size)
        room = self._segment_bytes - _SEAL_SIZE
        if self._reserve_bytes:
            room = min(room, file.reserved - self._reserve_bytes // 2)
        file.room = room
        return file

    def _room_for(self, size: int) -> SegmentFile:
        """The segment the next record goes to."""
        file = self._file
        if file is None:
            self._begin_epoch()
        elif file.broken or file.info.epoch != self._lease.epoch:
            self._reopen()
        elif file.info.sealed or (file.end + size + _SEAL_SIZE > self._segment_bytes and not file.info.empty):
            self._roll(file)
        assert self._file is not None
        return self._file

    def _roll(self, file: SegmentFile) -> None:
        if not file.info.sealed:  # sealed already: the disk was full when the next segment was to begin
            self._seal(RecordType.ROLL)
        with self._commit.exclusive():
            self._durable_seq = self.next_seq
            self._begin_segment()

    def _seal(self, kind: RecordType) -> None:
        """ROLL or CLOSE behind the last record."""
        assert self._file is not None
        info = self._file.info
        body = encode_seal(Seal(info.first_seq, info.messages, self.start))
        self._write_plain(self._file, kind, body, 0)
        self._file.room = 0
        info.sealed = True
        info.closed = kind == RecordType.CLOSE

    def _write_plain(self, file: SegmentFile, kind: RecordType, body: bytes, count: int) -> None:
        header = self._header(_plain(kind, body, count), self.next_seq, file.end)
        file.append((encode_header(header, file.info.salt), body), RECORD_HEADER_SIZE + len(body))
        self._wrote(file, header)

    def _begin_segment(self, rows: Sequence[SealedSegment] | None = None) -> None:
        """A new file; with `rows` it begins with EPOCH. The old one is durable and sealed, or in `rows`."""
        segno, epoch = self._next_segno, self._lease.epoch
        self._next_segno += 1  # also if it fails: perhaps the name remains
        info = SegmentInfo(segno, epoch, segment_path(self._root, self._part, segno, epoch), 0)
        info.salt = record_salt(self._uuid, segno, epoch)
        info.base_rno = self._next_rno
        info.last_rno = self._next_rno - 1
        info.first_seq = info.next_seq = self.next_seq
        info.last_time = self._last_time
        if self._part == "log":
            info.index = RecordIndex()
        if self._file is not None:
            self._file.trim()  # the new one may need it
        first, header = b"", None
        if rows is not None:
            body = encode_epoch(self.start, list(rows))
            header = self._header(_plain(RecordType.EPOCH, body, len(rows)), self.next_seq, FILE_HEADER_SIZE)
            first = encode_header(header, info.salt) + body
        kind = _KINDS[self._part]
        made = SegmentFile.create(
            self._files, self._directory, info, FileHeader(kind, self._uuid, segno, self._next_rno, epoch), first
        )
        old, self._file, self.segment = self._file, made, info
        if header is not None:
            self._wrote(made, header)
            self._unsealed = []
        self._commit.began(self._next_rno - 1, made.handle)
        if self._sync != "batch":  # else everybody syncs what he wrote
            self._flush_at = made.end + FLUSH_BYTES
        if self._reserve_bytes:
            self._claim(made, 0)
        if old is not None:
            self._files.close(old.handle)
        self._on_segment(info)

    def _begin_epoch(self) -> None:
        """The first segment of this epoch. Only then may anything else be written."""
        try:
            self._begin_segment(self._unsealed)
        except OSError as problem:
            raise self._refused(problem) from problem

    def _reopen(self) -> None:
        """Go on in a new segment that seals our own last one: after a lapse, or when it could not be cut."""
        if self._file is None:
            return  # nothing was written; the next record begins the epoch
        info = self._file.info
        row = SealedSegment(
            info.segno, info.epoch, info.valid, info.last_rno + 1, info.first_seq, info.next_seq, info.messages
        )
        try:
            with self._commit.exclusive():
                self._durable_seq = self.next_seq
                self._begin_segment([] if info.sealed else [row])
        except SyncFailed as problem:
            raise self._failed(problem.__cause__) from problem.__cause__
        except OSError as problem:
            raise self._refused(problem) from problem
        info.sealed = True

    def _make_durable(self) -> None:
        self._commit.wait(self._commit.written)
        self._durable_seq = self.next_seq

    def _wait(self, ticket: int) -> None:
        try:
            self._commit.wait(ticket)
        except SyncFailed as problem:
            raise self._failed(problem.__cause__) from problem.__cause__

    def _failed(self, cause: BaseException | None) -> WriterFailedError:
        self._lease.failed()
        return WriterFailedError(self._root, f"the disk refused: {cause}")

    def _refused(self, problem: OSError) -> StorageError:
        """What to tell about an error of a write or a create."""
        if problem.errno in FULL_DISK:
            return DiskFullError(self._root, f"no room to write ({problem.strerror})")
        self._commit.failure = self._commit.failure or problem
        return self._failed(problem)


def _plain(kind: RecordType, body: bytes, count: int) -> Draft:
    return Draft(kind, 0, 0, count, 0, 0, (body,), len(body), crc32(body))
