"""`verify`: read every byte of a log and say what is wrong with it. Takes no lock, changes nothing.

May be run beside a writer: what is not whole yet at the end of the newest segment is not damage.
"""

from __future__ import annotations

from typing import NamedTuple

from daskqueue_storage.directory import read_format, uuid_text
from daskqueue_storage.errors import NotAQueue
from daskqueue_storage.files import Files, OsFiles, read_or_zeros
from daskqueue_storage.format import FILE_HEADER_SIZE, RecordType
from daskqueue_storage.recovery import survey_beside_writer
from daskqueue_storage.report import Damage, RecoveryReport
from daskqueue_storage.scan import Hole, scan
from daskqueue_storage.segment import SegmentInfo

__all__ = ["VerifyReport", "verify"]


class VerifyReport(NamedTuple):
    """What was found. `recovery` is what an opener would have seen of it."""

    uuid: str
    segments: int
    records: int
    messages: int
    size_bytes: int
    damaged: tuple[Damage, ...]
    missing_files: tuple[str, ...]
    lost_records: int
    recovery: RecoveryReport

    @property
    def whole(self) -> bool:
        """Nothing is damaged or missing."""
        return not self.damaged and not self.missing_files


def verify(path: object, *, deep: bool = True, files: Files | None = None) -> VerifyReport:
    """Check a log. Not `deep`: only what opening looks at."""
    system: Files = files if files is not None else OsFiles()
    root = system.resolve(path)
    if system.stat(root) is None:
        raise NotAQueue(root, "there is nothing")
    header, complaints = read_format(system, root)
    if header is None:
        raise NotAQueue(root, "it is empty")
    found = survey_beside_writer(system, root, "log", header.uuid)
    records, messages, damaged = 0, 0, list(found.report.damaged)
    if complaints == ["damaged"]:
        damaged.insert(0, Damage(f"{root}/FORMAT", 0, FILE_HEADER_SIZE, 0))
    lost = found.report.lost_records
    for info in found.segments:
        if not deep:
            messages += info.messages
            continue
        whole, held, holes = _read_all(system, info)
        records += whole
        messages += held
        fresh = [hole for hole in holes if not any(hole[:3] == known[:3] for known in damaged)]
        damaged += fresh
        lost += sum(hole.lost for hole in fresh)
    missing = found.report.missing_files + ((f"{root}/FORMAT",) if complaints == ["missing"] else ())
    size = sum(info.valid for info in found.segments)
    return VerifyReport(
        uuid_text(header.uuid),
        len(found.segments),
        records,
        messages,
        size,
        tuple(damaged),
        missing,
        lost,
        found.report,
    )


def _read_all(files: Files, info: SegmentInfo) -> tuple[int, int, list[Damage]]:
    """Whole records, messages in them, and damage of one segment, up to where it counts."""
    records = messages = 0
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
            records += 1
            messages += part.count if part.type in (RecordType.PUT, RecordType.COPY) else 0
    finally:
        files.close(handle)
    if hole is not None:
        holes.append(Damage(info.path, hole.start, hole.stop, info.last_rno + 1 - expected))
    return records, messages, holes
