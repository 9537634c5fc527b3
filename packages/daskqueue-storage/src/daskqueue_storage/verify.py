"""`verify`: read every byte of a log or queue and say what is wrong with it. Takes no lock, changes nothing.

Of both logs: every record verifies, and their numbers go on without a gap. Of a queue's index (`verify_index`): every
record makes sense, snapshots agree with what is before them, and every payload that is needed is there. Damage is
never raised, only reported. Segment numbers may have gaps: one is used up when a segment could not be begun.

May be run beside a writer: what is not whole yet at the end of the newest segment is not damage.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from daskqueue_storage.access import refusals
from daskqueue_storage.directory import highest_epoch, read_format, uuid_text
from daskqueue_storage.errors import NotAQueue
from daskqueue_storage.files import Files, OsFiles, read_or_zeros
from daskqueue_storage.format import FILE_HEADER_SIZE, FileHeader, Flag, RecordType
from daskqueue_storage.lock import holder_of
from daskqueue_storage.recovery import survey_beside_writer
from daskqueue_storage.replayed import again_while_it_vanishes, look
from daskqueue_storage.report import Damage, Problem, RecoveryReport
from daskqueue_storage.scan import Hole, scan
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.verify_index import IndexReport, check_index

__all__ = ["VerifyReport", "verify"]

_HOLDS_MESSAGES: Final = (RecordType.PUT, RecordType.COPY)


class VerifyReport(NamedTuple):
    """What was found. `recovery` is what an opener would have seen of the log."""

    uuid: str
    segments: int  # these four: of the log
    records: int
    messages: int
    size_bytes: int
    damaged: tuple[Damage, ...]  # of both, as the next two
    missing_files: tuple[str, ...]
    lost_records: int
    recovery: RecoveryReport
    problems: tuple[Problem, ...] = ()  # all of it by place, and what bytes alone do not tell
    index: IndexReport | None = None  # type: ignore[assignment]  # of a queue; hides tuple's method, unused in a record

    @property
    def whole(self) -> bool:
        """Nothing is damaged or missing, and everything fits together."""
        return not self.problems


def verify(path: object, *, deep: bool = True, files: Files | None = None) -> VerifyReport:
    """Check a log or a queue. Not `deep`: only what opening looks at."""
    system: Files = files if files is not None else OsFiles()
    root = system.resolve(path)
    with refusals(root):
        found = system.stat(root)
        if found is None:
            raise NotAQueue(root, "there is nothing")
        if not found.is_dir:
            raise NotAQueue(root, "it is a file")
        header, complaints = read_format(system, root)
        if header is None:
            raise NotAQueue(root, "it is empty")
        return again_while_it_vanishes(lambda is_last: _verify(system, root, header, complaints, deep, is_last))


def _verify(
    files: Files, root: str, header: FileHeader, complaints: list[str], deep: bool, is_last: bool
) -> VerifyReport:
    parts = [part for part in ("log", "index") if files.stat(f"{root}/{part}") is not None]
    if parts == ["log", "index"]:
        surveys = look(files, root, header.uuid)
    else:
        surveys = {part: survey_beside_writer(files, root, part, header.uuid) for part in parts}
    read = {part: _Read(files, surveys[part].segments, surveys[part].report, deep) for part in parts}
    log = read.get("log") or _Read(files, [], RecoveryReport(), deep)
    damaged = [damage for part in parts for damage in read[part].damaged]
    missing = [path for part in parts for path in surveys[part].report.missing_files]
    lost = sum(each.lost for each in read.values())
    if complaints == ["damaged"]:
        damaged.insert(0, Damage(f"{root}/FORMAT", 0, FILE_HEADER_SIZE, 0))
    if complaints == ["missing"]:
        missing.append(f"{root}/FORMAT")
    if "log" not in parts:
        missing.append(f"{root}/log")
    if "index" not in parts and log.is_queue:
        missing.append(f"{root}/index")
    problems = [_told(damage) for damage in damaged]
    problems += [Problem(path, -1, "it is missing", _LOST.get(path[len(root) :], "its records")) for path in missing]
    problems += _locks(files, root)
    index = None
    if parts == ["log", "index"]:
        # Records that are damaged explain everything that does not fit.
        whole = not damaged and not missing
        index, more = check_index(files, root, header.uuid, surveys, deep=deep, whole=whole, is_last=is_last)
        index = index._replace(records=read["index"].records)
        problems += more
    return VerifyReport(
        uuid_text(header.uuid),
        len(log.segments),
        log.records,
        log.messages,
        sum(info.valid for info in log.segments),
        tuple(damaged),
        tuple(missing),
        lost,
        log.report,
        tuple(problems),
        index,
    )


class _Read:
    """One log, its bytes read."""

    def __init__(self, files: Files, segments: list[SegmentInfo], report: RecoveryReport, deep: bool) -> None:
        self.segments = segments
        self.report = report
        self.records = self.messages = 0
        self.is_queue = False
        self.damaged = list(report.damaged)
        self.lost = report.lost_records
        for info in segments:
            if not deep:
                self.messages += info.messages
                continue
            holes = self._read_all(files, info)
            fresh = [hole for hole in holes if not any(hole[:3] == known[:3] for known in self.damaged)]
            self.damaged += fresh
            self.lost += sum(hole.lost for hole in fresh)

    def _read_all(self, files: Files, info: SegmentInfo) -> list[Damage]:
        """Count what is whole in a segment, up to where it counts; what is not."""
        holes: list[Damage] = []
        expected = info.base_rno
        hole: Hole | None = None
        handle = files.open(info.path)
        try:
            read = lambda size, offset: read_or_zeros(files, handle, size, offset)
            for part in scan(read, FILE_HEADER_SIZE, info.valid, info.salt, bodies=True):
                if isinstance(part, Hole):
                    hole = part
                    continue
                if hole is not None:
                    holes.append(Damage(info.path, hole.start, hole.stop, part.rno - expected))
                    hole = None
                expected = part.rno + 1
                self.records += 1
                if part.type in _HOLDS_MESSAGES:
                    self.messages += part.count
                    self.is_queue = self.is_queue or bool(part.flags & Flag.EXT)
        finally:
            files.close(handle)
        if hole is not None:
            holes.append(Damage(info.path, hole.start, hole.stop, info.last_rno + 1 - expected))
        return holes


_LOST: Final = {
    "/FORMAT": "nothing, the segments say the same",
    "/log": "all messages",
    "/index": "what happened to the messages",
}


_LOOKS: Final = 3
_WORD: Final = "the word of how the last writer ended; who opens the directory next is on guard"


def _told(damage: Damage) -> Problem:
    size = damage.stop - damage.start
    return Problem(
        damage.path,
        damage.start,
        f"{size} bytes are not what was written" if size else "it ends too early",
        f"{damage.lost} record{'' if damage.lost == 1 else 's'}" if damage.lost else "nothing",
    )


def _locks(files: Files, root: str) -> list[Problem]:
    """The last lock must verify, and be that of the last epoch."""
    for _ in range(_LOOKS):  # it may be written while it is read
        number, content = holder_of(files, root)
        last = highest_epoch(files, root)
        path = f"{root}/lock-{max(number, last):08x}"
        if number < last:
            problem = Problem(path, -1, f"it was deleted: there are segments of epoch {last}", _WORD)
        elif number and content is None:
            problem = Problem(path, 0, "its content does not verify", _WORD)
        else:
            return []
    return [problem]
