"""What a directory holds, found without changing it: which segments count, up to where, and what is missing.

Recovery never truncates and never overwrites. What does not count is left where it is, and the EPOCH record that the
writer puts down next says so for ever. Reading twice finds the same.

How a segment is judged, the first that applies:
1. A later EPOCH has a row for it: that is how far it counts, whatever was written behind that since.
2. It ends in ROLL or CLOSE: all of it.
3. Scanned, bodies too. Where the bytes stop being records and none follow, and no later segment holds any: a torn tail,
   which a crash leaves. Anywhere else: damage. Records whose numbers the next segment's header claims do not count.

Damage is counted in records: their numbers rise by one, so a gap says exactly how many are gone. Only a torn last
record cannot be told from one that rotted.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from daskqueue_storage.directory import SegmentName, list_segments
from daskqueue_storage.errors import FormatError, WriterFailedError
from daskqueue_storage.files import Files, read_or_zeros
from daskqueue_storage.format import (
    FILE_HEADER_SIZE,
    MAX_COUNT,
    RECORD_HEADER_SIZE,
    SEAL_SIZE,
    FileHeader,
    Flag,
    RecordHeader,
    RecordType,
    SealedSegment,
    decode_epoch,
    decode_file_header,
    decode_header,
    decode_seal,
    record_salt,
    unsupported,
)
from daskqueue_storage.lock import closed_by
from daskqueue_storage.report import Damage, RecoveryReport
from daskqueue_storage.scan import Hole, Read, scan
from daskqueue_storage.segment import RecordIndex, SegmentInfo
from daskqueue_storage.writer import Origin

__all__ = [
    "Survey",
    "build_index",
    "expect_clean",
    "extend",
    "start_of",
    "survey",
    "survey_beside_writer",
]

_U64 = Struct("<Q")
_HEAD = 4096
_MARKED = 1000
_KNOWN = frozenset(map(int, RecordType))
_HOLDS_MESSAGES = frozenset([int(RecordType.PUT), int(RecordType.COPY)])
_RETIRED = int(RecordType.RETIRED)
_ENDS = frozenset([int(RecordType.EPOCH), int(RecordType.ROLL), int(RecordType.CLOSE)])
_RESERVED, _IGNORABLE = int(Flag.RESERVED), int(Flag.IGNORABLE)


class Survey(NamedTuple):
    """The segments that count, ascending, and where a writer goes on."""

    segments: list[SegmentInfo]
    retired: list[str]  # paths that a crash kept from being deleted
    origin: Origin
    report: RecoveryReport


class _Found:
    """A segment while it is judged."""

    def __init__(self, info: SegmentInfo, header: FileHeader | None, size: int) -> None:
        self.info = info
        self.header = header
        self.size = size
        self.base_known = False
        self.rows: list[SealedSegment] = []
        self.start = 0
        self.holes: list[Damage] = []
        self.end_hole: Hole | None = None  # torn, or damage: the later segments tell

    @property
    def has_record(self) -> bool:
        return self.info.last_rno >= self.info.base_rno

    def begin_at(self, rno: int) -> None:
        """The record number that may stand here first."""
        self.info.base_rno = rno
        if not self.info.sealed:
            self.info.last_rno = rno - 1


def survey(
    files: Files, root: str, part: str, uuid: bytes, *, owner: bool = True, distrust_cache: bool = False
) -> Survey:
    """Look at every segment. As `owner` unfinished ones are made durable before they are believed.

    `distrust_cache`: the last writer failed to sync, so what is cached may not be on disk (see `commit`).
    """
    began = files.boot_ns()
    listing = list_segments(files, root, part)
    look = _Look(files, root, uuid, owner, distrust_cache)
    if owner and listing.current:
        # Names that a killed writer left in the cache: what follows relies on them.
        look.settle_names(f"{root}/{part}")
    found = [look.at(name, name is listing.current[-1]) for name in listing.current]
    rows = {(row.segno, row.epoch): row for item in found for row in item.rows}
    expected = max((item.start for item in found), default=0)
    for at, item in enumerate(found):
        if not item.base_known:
            item.begin_at(expected)
        later = next((other.info.base_rno for other in found[at + 1 :] if other.base_known), None)
        look.judge(item, rows.get((item.info.segno, item.info.epoch)), later)
        expected = item.info.last_rno + 1
    start = max((item.start for item in found), default=0)
    kept, retired = _without_retired(found, start)
    clean = not found or found[-1].info.closed
    report = _compare(kept, start, f"{root}/{part}")._replace(
        clean=clean,
        stale_files=tuple(name.path for name in listing.stale),
        foreign_files=tuple(listing.foreign),
        seconds=(files.boot_ns() - began) / 1e9,
    )
    segments = [item.info for item in kept]
    _number(segments)
    return Survey(segments, retired, _origin(segments, listing.current + listing.stale, start, clean), report)


def survey_beside_writer(files: Files, root: str, part: str, uuid: bytes) -> Survey:
    """The same for who does not own the directory: what is unfinished at the end is perhaps being written."""
    closed = closed_by(files, root)
    found = survey(files, root, part, uuid, owner=False)
    if closed and closed == closed_by(files, root):
        return expect_clean(found, f"{root}/{part}")
    return found._replace(report=found.report._replace(tail_bytes=0))


def expect_clean(found: Survey, directory: str) -> Survey:
    """The last writer left word that it closed the log; if the log does not end so, its end is gone or damaged."""
    report = found.report
    if report.clean:
        return found
    if report.tail_bytes and found.segments:
        info = found.segments[-1]
        damage = Damage(info.path, info.valid, info.valid + report.tail_bytes, 1)
        report = report._replace(damaged=(*report.damaged, damage), tail_bytes=0, lost_records=report.lost_records + 1)
    else:
        report = report._replace(missing_files=(*report.missing_files, f"{directory}/* (the newest)"))
    return found._replace(report=report)


def start_of(runs_body: bytes) -> int:
    """The number of the first record that is kept, from the body of a RETIRED record of a plain log."""
    return int(_U64.unpack(runs_body[-8:])[0])


def build_index(files: Files, handle: int, info: SegmentInfo) -> list[Damage]:
    """Find the messages of a segment that was not scanned yet, and what of it is damaged."""
    index, damaged, expected = RecordIndex(), [], info.base_rno
    hole: Hole | None = None
    for part in scan(_reading(files, handle), FILE_HEADER_SIZE, info.valid, info.salt):
        if isinstance(part, Hole):
            hole = part
            continue
        _check_known(info.path, part)
        if hole is not None:
            damaged.append(Damage(info.path, hole.start, hole.stop, part.rno - expected))
            hole = None
        expected = part.rno + 1
        if part.type in (RecordType.PUT, RecordType.COPY):
            index.append(part.pos, part.base, part.count)
    if hole is not None:
        damaged.append(Damage(info.path, hole.start, hole.stop, info.last_rno + 1 - expected))
    info.index = index
    return damaged


def extend(files: Files, handle: int, info: SegmentInfo) -> None:
    """For readers: take in what was appended to a growing segment, up to the first record that is not whole yet."""
    for part in scan(_reading(files, handle), info.valid, files.size(handle), info.salt, bodies=True):
        if isinstance(part, Hole):
            return
        _check_known(info.path, part)
        _take_in(info, part)
        if part.type in (RecordType.ROLL, RecordType.CLOSE):
            info.sealed, info.closed = True, part.type == RecordType.CLOSE
            return


# ------------------------------------------------------------------------------------------------------ one segment


class _Look:
    """Reads segments: first the ends of all, then as much as it takes to judge each."""

    def __init__(self, files: Files, root: str, uuid: bytes, owner: bool, distrust_cache: bool) -> None:
        self._files = files
        self._root = root
        self._uuid = uuid
        self._owner = owner
        self._distrust_cache = distrust_cache

    def at(self, name: SegmentName, is_last: bool) -> _Found:
        """The two ends of a segment."""
        handle = self._files.open(name.path)
        try:
            if is_last:
                self._settle(handle, name.path)
            found = self._ends(name, handle)
            if not found.info.sealed and not is_last:
                self._settle(handle, name.path)
                found = self._ends(name, handle)
            return found
        finally:
            self._files.close(handle)

    def judge(self, found: _Found, row: SealedSegment | None, later_base: int | None) -> None:
        """Decide up to where it counts."""
        info = found.info
        if row is not None:
            info.valid, info.last_rno = row.valid, row.next_rno - 1
            info.first_seq, info.next_seq, info.messages = row.first_seq, row.next_seq, row.messages
            info.sealed, info.closed = True, False
            if found.size < row.valid:
                found.holes += self._index(info)
        elif info.sealed:
            info.valid = found.size
        else:
            handle = self._files.open(info.path)
            try:
                self._scan(found, handle, later_base)
            finally:
                self._files.close(handle)

    def _index(self, info: SegmentInfo) -> list[Damage]:
        handle = self._files.open(info.path)
        try:
            return build_index(self._files, handle, info)
        finally:
            self._files.close(handle)

    def settle_names(self, directory: str) -> None:
        """What was created becomes durable, before a successor is that would miss it."""
        try:
            self._files.sync_dir(directory)
        except OSError as problem:
            raise WriterFailedError(self._root, f"{directory} cannot be made durable: {problem}") from problem

    def _settle(self, handle: int, path: str) -> None:
        """What a killed process left in the page cache becomes durable before anybody relies on it."""
        if not self._owner:
            return
        try:
            self._files.sync(handle)
            if self._distrust_cache:
                self._files.forget_cached(handle)
        except OSError as problem:
            raise WriterFailedError(self._root, f"{path} cannot be made durable: {problem}") from problem

    def _ends(self, name: SegmentName, handle: int) -> _Found:
        files = self._files
        size = files.size(handle)
        info = SegmentInfo(name.segno, name.epoch, name.path, record_salt(self._uuid, name.segno, name.epoch))
        head = read_or_zeros(files, handle, _HEAD, 0)
        header = decode_file_header(head)
        if header is not None and (header.uuid, header.number, header.epoch) != (self._uuid, name.segno, name.epoch):
            header = None
        if header is not None and (lacking := unsupported(header)):
            raise FormatError(name.path, lacking)
        found = _Found(info, header, size)
        first = decode_header(head, FILE_HEADER_SIZE, FILE_HEADER_SIZE, info.salt)
        found.base_known = header is not None or first is not None
        found.begin_at(header.base if header else first.rno if first else 0)
        if first is not None and first.type == RecordType.EPOCH:
            body = self._body(handle, first)
            if body is not None:
                found.start, found.rows = decode_epoch(body)
                info.first_seq = info.next_seq = first.base
        at = size - SEAL_SIZE
        if at >= FILE_HEADER_SIZE:
            self._read_seal(found, handle, at)
        return found

    def _read_seal(self, found: _Found, handle: int, at: int) -> None:
        info = found.info
        header = decode_header(read_or_zeros(self._files, handle, RECORD_HEADER_SIZE, at), 0, at, info.salt)
        if header is None or header.type not in (RecordType.ROLL, RecordType.CLOSE):
            return
        body = self._body(handle, header)
        if body is None:
            return
        seal = decode_seal(body)
        info.sealed, info.closed = True, header.type == RecordType.CLOSE
        info.valid, info.last_rno, info.last_time = found.size, header.rno, header.time
        info.first_seq, info.next_seq, info.messages = seal.first_seq, header.base, seal.messages
        found.start = max(found.start, seal.start)

    def _body(self, handle: int, header: RecordHeader) -> bytes | None:
        body = read_or_zeros(self._files, handle, header.blen, header.pos + RECORD_HEADER_SIZE)
        return body if len(body) == header.blen and crc32(body) == header.bcrc else None

    def _scan(self, found: _Found, handle: int, later_base: int | None) -> None:
        info = found.info
        info.index = RecordIndex()
        info.valid = FILE_HEADER_SIZE if found.header else 0
        expected, hole = info.base_rno, None
        read, records = _reading(self._files, handle), 0
        for part in scan(read, FILE_HEADER_SIZE, found.size, info.salt, bodies=True):
            if isinstance(part, Hole):
                hole = part
                if not self._owner and later_base is None and not self._stays(found, part):
                    break  # perhaps it is being written: not yet
                continue
            if later_base is not None and part.rno >= later_base:
                break  # written when the segment no longer counted
            _check_known(info.path, part)
            if hole is not None:
                found.holes.append(Damage(info.path, hole.start, hole.stop, part.rno - expected))
                hole = None
            expected = part.rno + 1
            if part.type == _RETIRED:
                found.start = max(found.start, start_of(self._body(handle, part) or bytes(8)))
            _take_in(info, part)
            if records % _MARKED == 0:
                info.marks.append((part.rno, part.pos))
            records += 1
        found.end_hole = hole

    def _stays(self, found: _Found, hole: Hole) -> bool:
        """Whether a hole is damage although somebody may be writing: records are behind it, and it is there again.

        A writer writes in order. So what was written while it was read is whole when it is read anew.
        """
        if hole.stop == found.size:
            return False
        handle = self._files.open(found.info.path)
        try:
            read = _reading(self._files, handle)
            return next(iter(scan(read, hole.start, found.size, found.info.salt, bodies=True)), None) == hole
        finally:
            self._files.close(handle)


def _take_in(info: SegmentInfo, header: RecordHeader) -> None:
    """One more record counts."""
    kind, _, _, count, pos, info.last_rno, base, info.last_time, _, _, _, _ = header
    info.valid = header.end
    if kind in _HOLDS_MESSAGES:
        assert info.index is not None
        info.index.append(pos, base, count)
        if not info.messages and not info.first_seq:
            info.first_seq = base
        info.messages += count
        if base + count > info.next_seq:
            info.next_seq = base + count
    elif kind in _ENDS:
        info.next_seq = max(info.next_seq, base)


def _check_known(path: str, header: RecordHeader) -> None:
    if header.type in _KNOWN and not header.flags & _RESERVED:
        return
    if not header.flags & _IGNORABLE:
        raise FormatError(path, f"record {header.rno} at byte {header.pos} is of unknown type {header.type}")


def _reading(files: Files, handle: int) -> Read:
    return lambda size, offset: read_or_zeros(files, handle, size, offset)


# ------------------------------------------------------------------------------------------------------ all of them


def _without_retired(found: list[_Found], start: int) -> tuple[list[_Found], list[str]]:
    """What stands before the segment in which the first record that is kept may stand was about to be deleted.

    Not only segments with such records: what a replaced writer left there was known as stale by the segments that
    have gone since, and must not come to life.
    """
    first = max((at for at, item in enumerate(found) if item.base_known and item.info.base_rno <= start), default=0)
    return found[first:], [item.info.path for item in found[:first]]


def _compare(found: list[_Found], start: int, directory: str) -> RecoveryReport:
    """Damage and missing files: each segment's numbers must go on where those before it ended."""
    last_live = max((at for at, item in enumerate(found) if item.has_record), default=-1)
    damaged: list[Damage] = []
    missing: list[str] = []
    lost_files = tail = 0
    expected = start
    before: SegmentInfo | None = None
    for at, item in enumerate(found):
        info = item.info
        lost = info.base_rno - expected
        if lost > 0:
            ended_early = (
                before is not None and bool(damaged) and damaged[-1] == Damage(before.path, *damaged[-1][1:3], -1)
            )
            if ended_early:
                damaged[-1] = damaged[-1]._replace(lost=lost)
            elif before is not None and before.segno + 1 == info.segno:
                damaged.append(Damage(before.path, before.valid, before.valid, lost))
            else:
                gone = range(before.segno + 1 if before else 1, info.segno)
                missing += [f"{directory}/{segno:016x}-*" for segno in gone][-3:] or [f"{directory}/* (the oldest)"]
                lost_files += lost
        if item.header is None and info.valid:
            damaged.append(Damage(info.path, 0, FILE_HEADER_SIZE, 0))
        damaged += item.holes
        if item.end_hole is not None and at < last_live:
            # How many records it held is told by the next segment's first number: see above.
            damaged.append(Damage(info.path, *item.end_hole, -1))
        elif item.end_hole is not None:
            tail += item.end_hole.stop - item.end_hole.start
        expected = max(expected, info.last_rno + 1)
        before = info
    told = tuple(item._replace(lost=max(0, item.lost)) for item in damaged)
    return RecoveryReport(
        tail_bytes=tail,
        damaged=told,
        missing_files=tuple(missing),
        lost_records=sum(item.lost for item in told) + lost_files,
    )


def _number(segments: list[SegmentInfo]) -> None:
    """Segments without messages begin where the one before ended."""
    at = 0
    for info in segments:
        info.first_seq = max(at, info.first_seq) if info.messages or info.first_seq else at
        info.next_seq = max(info.first_seq, info.next_seq)
        at = info.next_seq


def _origin(segments: list[SegmentInfo], names: list[SegmentName], start: int, clean: bool) -> Origin:
    next_rno = max((info.last_rno + 1 for info in segments), default=start)
    next_seq = segments[-1].next_seq if segments else 0
    unsealed = [
        SealedSegment(
            info.segno,
            info.epoch,
            info.valid,
            info.last_rno + 1,
            info.first_seq,
            info.next_seq,
            info.messages,
        )
        for info in segments
        if not info.sealed
    ]
    return Origin(
        max((name.segno for name in names), default=0) + 1,
        next_rno,
        # Numbers that were given and lost with what was not synced must not be given again.
        next_seq if clean else next_seq + MAX_COUNT,
        max((info.last_time for info in segments), default=0),
        start,
        clean,
        unsealed,
    )
