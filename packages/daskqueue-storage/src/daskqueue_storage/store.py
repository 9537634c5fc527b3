"""The files of a queue: both logs, their lock, the newest snapshot, and what follows it.

`QueueStore` opens a directory (lock, survey of both logs, choice of a snapshot) and hands out what is to be replayed;
`begin` puts down the seals, and from then on it writes. It also lets segments go. What records mean is the queue's.

Invariants:
- A segment of the log goes when nobody needs a record of it, the older of the two snapshots that are kept knows all its
  records, and the index that says so is durable. So the newest snapshot may be damaged: the older one and what follows
  it lead to the same state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Final
from zlib import crc32

from daskqueue_core.contents import Ride
from daskqueue_core.events import Event
from daskqueue_storage.body import Draft, draft, parse
from daskqueue_storage.directory import check_safe, create_layout, read_format, remove_garbage, uuid_text
from daskqueue_storage.errors import DamagedLog, DiskFullError, NotAQueue
from daskqueue_storage.files import Files, read_or_zeros, remove_quietly
from daskqueue_storage.format import FILE_HEADER_SIZE, RecordHeader, RecordType, record_size
from daskqueue_storage.index import Snapshot, decode_snapshot
from daskqueue_storage.lock import Lease, acquire
from daskqueue_storage.records import event_of
from daskqueue_storage.recovery import Survey, expect_clean, survey
from daskqueue_storage.report import Damage, RecoveryReport
from daskqueue_storage.scan import Hole, Window, scan
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.shelf import Place, Shelf
from daskqueue_storage.tail import FoundPut, FoundSingles, found_puts
from daskqueue_storage.writer import LogWriter, Placed

__all__ = ["QueueStore"]

_log = logging.getLogger("daskqueue_storage")
_PARTS: Final = ("log", "index")
_U64 = Struct("<Q")
_INDEX_SEGMENT_BYTES: Final = 2**32
_RESERVE_SHARE: Final = 16
"""So small a part of a LogSegment is kept free in the index for consumers, when producers have filled the disk."""
_NO_EVENTS: Final = frozenset(
    [RecordType.SNAPSHOT, RecordType.EPOCH, RecordType.ROLL, RecordType.CLOSE, RecordType.RETIRED]
)


class QueueStore:
    """The directory of one queue, held by its lock."""

    log: LogWriter
    index: LogWriter
    covered = 0
    """The first record number of the log that no event in memory has come from."""
    snapshot_size = 0
    """Of the last that was written here."""

    def __init__(
        self,
        files: Files,
        path: object,
        *,
        create: bool,
        uuid: bytes | None,
        lock_ttl: float,
        owner: str,
        wait: float,
        allow_shared: bool,
        on_damage: str,
    ) -> None:
        self.files = files
        self.root = root = files.resolve(path)
        self._lease: Lease | None = None
        self._on_damage = on_damage
        self.damaged: list[Damage] = []
        self.shelf = Shelf(files, root, self.damaged)
        self.index_segments: list[SegmentInfo] = []
        self.snapshots: list[tuple[int, int]] = []
        """Segment, and first record of the log it does not know, of the two newest."""
        if not allow_shared:
            check_safe(files, root)
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
            self._survey(uuid)
        except BaseException:
            self.abandon()
            raise

    @property
    def lease(self) -> Lease:
        """The writer's."""
        assert self._lease is not None
        return self._lease

    def _check_format(self, uuid: bytes | None, create: bool) -> None:
        header, _ = read_format(self.files, self.root)
        if header is None:
            if not create:
                raise NotAQueue(self.root, "it is empty, and create=False")
            return
        for part in _PARTS:
            if self.files.stat(f"{self.root}/{part}") is None:
                raise NotAQueue(self.root, f"its directory {part} is missing")
        if uuid is not None and header.uuid != uuid:
            raise NotAQueue(self.root, f"it is {uuid_text(header.uuid)}, not {uuid_text(uuid)}")

    def _survey(self, uuid: bytes | None) -> None:
        files, root, lease = self.files, self.root, self.lease
        began = files.boot_ns()
        header, complaints = read_format(files, root)
        if header is None or complaints == ["missing"]:
            header = create_layout(files, root, _PARTS, header.uuid if header else uuid or files.random_bytes(16))
        remove_garbage(files, root)
        self.uuid = header.uuid
        self._found: dict[str, Survey] = {}
        surveys = {part: survey(files, root, part, self.uuid, distrust_cache=lease.after_failure) for part in _PARTS}
        for part, found in surveys.items():
            self._found[part] = expect_clean(found, f"{root}/{part}") if lease.after_clean else found
        for info in self._found["log"].segments:
            self.shelf.add(info)
            info.index = None
        self.index_segments = list(self._found["index"].segments)
        self.by_number = {info.segno: info for info in self.shelf.segments}
        self.snapshot = self._newest_snapshot()
        self._miss_the_end(surveys["log"])
        self._began = began
        self._complaints = complaints

    # ------------------------------------------------------------------------------------------------------- recovery

    def _newest_snapshot(self) -> Snapshot | None:
        self._snapshot_at = (0, FILE_HEADER_SIZE)
        for at in range(len(self.index_segments) - 1, -1, -1):
            info = self.index_segments[at]
            newest: tuple[Snapshot, int] | None = None
            for header, body in self._records(info, leading=True):
                if header.type == RecordType.SNAPSHOT:
                    try:
                        block = parse(header, body).payloads[0]
                        newest = decode_snapshot(block, self.by_number), header.end
                    except (ValueError, IndexError, TypeError) as problem:
                        _log.warning("%s: its snapshot makes no sense: %s", info.path, problem)
            if newest is not None:
                self._snapshot_at = (at, newest[1])
                self.snapshots = [(info.segno, newest[0].covered)]
                return newest[0]
        return None

    def _miss_the_end(self, found: Survey) -> None:
        """A snapshot was written when all that it knows of the log was on the disk: what is not `found` is lost."""
        covered = self.snapshot.covered if self.snapshot is not None else 0
        lost = covered - found.origin.next_rno
        if lost > 0:
            told = expect_clean(found._replace(report=found.report._replace(clean=False)), f"{self.root}/log")
            report = told.report._replace(clean=found.report.clean, lost_records=found.report.lost_records + lost)
            # Numbers that were given are not given again: the snapshot would take what comes for what it knows.
            self._found["log"] = found._replace(report=report, origin=found.origin._replace(next_rno=covered))

    def puts(self, knows: Callable[[int], bool]) -> tuple[list[FoundPut | FoundSingles], dict[int, Place]]:
        """The puts the snapshot does not know, in their order, and where batches were moved since.

        `knows`: whether the snapshot knows a batch, by base.
        """
        covered = self.snapshot.covered if self.snapshot is not None else 0
        return found_puts(self.shelf.segments, self._records, covered, knows)

    def events(self) -> Iterator[tuple[Event, Ride, int]]:
        """What happened since the snapshot, in order, and how many messages were put before each."""
        at, start = self._snapshot_at
        for number, info in enumerate(self.index_segments[at:], at):
            for header, body in self._records(info, start if number == at else FILE_HEADER_SIZE):
                if header.type in _NO_EVENTS:
                    continue
                try:
                    yield event_of(header, body)
                except ValueError as problem:
                    _log.warning("%s: record %d makes no sense: %s", info.path, header.rno, problem)

    def _records(
        self, info: SegmentInfo, start: int = FILE_HEADER_SIZE, *, leading: bool = False
    ) -> Iterator[tuple[RecordHeader, bytes]]:
        """The records of a segment whose bytes verify; `leading`: up to the first event."""
        if info.valid <= FILE_HEADER_SIZE:
            return
        handle = self.files.open(info.path)

        def read(size: int, offset: int) -> bytes:
            return read_or_zeros(self.files, handle, size, offset)

        try:
            window = Window(read, info.valid)
            for part in scan(read, start, info.valid, info.salt, window=window):
                if isinstance(part, Hole):
                    self._complain(Damage(info.path, part.start, part.stop, 1))
                    continue
                if leading and part.type not in (RecordType.EPOCH, RecordType.SNAPSHOT):
                    return
                body = window.body(part)
                if len(body) == part.blen and crc32(body) == part.bcrc:
                    yield part, body
                else:
                    self._complain(Damage(info.path, part.pos, part.end, 1))
        finally:
            self.files.close(handle)

    def _complain(self, damage: Damage) -> None:
        if damage not in self.damaged:
            self.damaged.append(damage)

    # -------------------------------------------------------------------------------------------------------- writing

    def begin(self, next_seq: int, *, sync: str | float, segment_bytes: int) -> RecoveryReport:
        """Seal what was found and be ready to write; what was found."""
        files, root, lease = self.files, self.root, self.lease
        report = self._report()
        if not report.whole:
            if self._on_damage == "raise":
                raise DamagedLog(root, report)
            _log.warning("%s: %s", root, report)
        writers = {}
        for part, size, reserve, add in (
            ("log", segment_bytes, 0, self.shelf.add),
            ("index", _INDEX_SEGMENT_BYTES, segment_bytes // _RESERVE_SHARE, self.index_segments.append),
        ):
            origin = self._found[part].origin
            writers[part] = LogWriter(
                files,
                root,
                part,
                uuid=self.uuid,
                lease=lease,
                origin=origin._replace(
                    settled=origin.settled and lease.after_release,
                    next_seq=max(origin.next_seq, next_seq) if part == "log" else origin.next_seq,
                ),
                sync=sync,
                segment_bytes=size,
                reserve_bytes=reserve,
                on_segment=add,
            )
            setattr(self, part, writers[part])
            for info in self._found[part].segments:
                info.sealed = True  # our EPOCH says where each ends
        self.log.verify()
        lease.begun()
        for found in self._found.values():
            for path in found.retired:
                remove_quietly(files, path)
        self.is_clean = report.clean
        return report

    def _report(self) -> RecoveryReport:
        log, index = self._found["log"].report, self._found["index"].report
        damaged = [*log.damaged, *index.damaged]
        more = [item for item in self.damaged if not any(item[:2] == known[:2] for known in damaged)]
        if "damaged" in self._complaints:
            damaged.insert(0, Damage(f"{self.root}/FORMAT", 0, FILE_HEADER_SIZE, 0))
        missing = log.missing_files + index.missing_files
        if "missing" in self._complaints:
            missing += (f"{self.root}/FORMAT",)
        return RecoveryReport(
            log.clean and index.clean,
            log.tail_bytes + index.tail_bytes,
            (*damaged, *more),
            missing,
            log.lost_records + index.lost_records + sum(item.lost for item in more),
            log.stale_files + index.stale_files,
            log.foreign_files + index.foreign_files,
            (self.files.boot_ns() - self._began) / 1e9,
            self.snapshot is not None,
        )

    @property
    def next_seq(self) -> int:
        """The number that the next message of the log may have at the least."""
        return self._found["log"].origin.next_seq

    def write_snapshot(self, covered: int, body: bytes) -> None:
        """A new IndexSegment that begins with it; the one before the last two goes."""
        self.index.check_room(record_size(len(body)))  # a segment that was ended and has no next would take no record
        self.log.sync()  # it speaks of records that must not be lost after it
        self.index.roll()
        placed = self.index.append(draft(RecordType.SNAPSHOT, block=body))
        self.index.sync()
        self.snapshots = [*self.snapshots[-1:], (placed.segment.segno, covered)]
        self.snapshot_size = len(body)
        oldest = self.snapshots[0][0]
        count = sum(info.segno < oldest for info in self.index_segments)
        if count and len(self.snapshots) == 2:
            self._let_go(self.index, self.index_segments, count)
            del self.index_segments[:count]

    def retirable(self, covered: int | None = None) -> int:
        """How many of the first segments of the log nobody needs."""
        if covered is None:
            covered = self.snapshots[0][1] if len(self.snapshots) == 2 else 0
        count = 0
        for info in self.shelf.segments[:-1]:
            if not info.sealed or self.shelf.live_bytes[info.segno] or info.last_rno >= covered:
                break
            count += 1
        return count

    def retire(self) -> int:
        """Let the first segments go that nobody needs; how many."""
        count = self.retirable()
        if count:
            self.index.sync()  # who says that their messages have ended
            self._let_go(self.log, self.shelf.segments, count)
            self.shelf.drop(count)
        return count

    def _let_go(self, writer: LogWriter, segments: Sequence[SegmentInfo], count: int) -> None:
        """Record it, sync, verify, then unlink."""
        doomed, kept = list(segments[:count]), segments[count]
        runs = [(info.segno, info.segno + 1) for info in doomed]
        record = draft(RecordType.RETIRED, runs=runs, block=_U64.pack(kept.base_rno))
        try:
            writer.append(record)
        except DiskFullError:
            self.index.lend()  # more than that is about to be free
            writer.append(record)
        writer.start = kept.base_rno
        writer.sync()
        for info in doomed:
            remove_quietly(self.files, info.path)

    def append_puts(self, drafts: Sequence[Draft]) -> list[Placed]:
        """The records of one put, one behind the other."""
        if self.index.segment is None:
            self.index.begin()  # while there is room: consumers need it
        if self.index.is_short and not self.index.has_reserve():
            raise DiskFullError(self.root, "no room but for what consumers have to say")
        if len(drafts) == 1:
            return [self.log.append(drafts[0])]
        with self.log.lock:
            return [self.log.append(one) for one in drafts]

    @property
    def segments(self) -> int:
        """How many files both logs have."""
        return len(self.shelf.segments) + len(self.index_segments)

    @property
    def size_bytes(self) -> int:
        """Of all segments, as far as they count."""
        return sum(info.valid for info in (*self.shelf.segments, *self.index_segments))

    def close(self) -> None:
        """End both logs, give the lock back."""
        clean = False
        try:
            clean = all([self.index.close(), self.log.close()])  # what the index kept for later is there for the log
        finally:
            self.abandon(clean=clean)

    def abandon(self, *, clean: bool = False) -> None:
        """Let go of everything as it is, and give the lock back."""
        self.let_go()
        if self._lease is not None:
            self._lease.release(clean=clean)

    def let_go(self) -> None:
        """Let go of the files."""
        for part in _PARTS:
            writer = self.__dict__.get(part)
            if writer is not None:
                writer.dispose()
        self.shelf.close()
