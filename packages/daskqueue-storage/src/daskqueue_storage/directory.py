"""The directory of a log: names of files, the file FORMAT, and whether it may be trusted.

    FORMAT                              64 bytes: which log this is; written once
    lock-<epoch:08x>                    the writer's lease (`lock`)
    log/<segno:016x>-<epoch:08x>.log    LogSegments
    index/<segno:016x>-<epoch:08x>.idx  IndexSegments, of a queue
    *.tmp                               garbage of a crash

Every file but a lock is written by one epoch only and never renamed over: a stale writer cannot damage a newer one's.
Not here: what is in the segments. Invariant: a directory that is not ours, or not safe, is refused before anything in
it is changed.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from daskqueue_storage.errors import FormatError, NotAQueue, UnsafeDirectory
from daskqueue_storage.files import Files, remove_quietly, write_fully
from daskqueue_storage.format import (
    FILE_HEADER_SIZE,
    FileHeader,
    FileKind,
    decode_file_header,
    encode_file_header,
    unsupported,
)

__all__ = [
    "FORMAT",
    "Listing",
    "SegmentName",
    "check_safe",
    "create_layout",
    "highest_epoch",
    "list_segments",
    "read_format",
    "remove_garbage",
    "segment_path",
    "uuid_text",
]

FORMAT: Final = "FORMAT"
_SUFFIXES: Final = {"log": ".log", "index": ".idx"}
_SEGMENT = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})(\.log|\.idx)")
_LOCK = re.compile(r"lock-[0-9a-f]{8}")


class SegmentName(NamedTuple):
    """A segment as its file name says."""

    segno: int
    epoch: int
    path: str


class Listing(NamedTuple):
    """What is in `log/` or `index/`."""

    current: list[SegmentName]  # ascending
    stale: list[SegmentName]  # begun by a writer that was no longer the owner: nobody reads them
    foreign: list[str]  # paths that are none of ours


def segment_path(root: str, part: str, segno: int, epoch: int) -> str:
    """Where a segment is; `part` is "log" or "index"."""
    return f"{root}/{part}/{segno:016x}-{epoch:08x}{_SUFFIXES[part]}"


def uuid_text(uuid: bytes) -> str:
    """As people write it."""
    digits = uuid.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def list_segments(files: Files, root: str, part: str) -> Listing:
    """The segments of a directory.

    A new epoch takes a segment number above all it sees. So a segment of an older epoch with a number as high was
    begun by a writer that had been replaced: nothing in it was ever acknowledged.
    """
    names, foreign = [], []
    for name in sorted(files.list_dir(f"{root}/{part}")):
        path = f"{root}/{part}/{name}"
        match = _SEGMENT.fullmatch(name)
        if match and match[3] == _SUFFIXES[part]:
            names.append(SegmentName(int(match[1], 16), int(match[2], 16), path))
        elif not name.endswith(".tmp"):
            foreign.append(path)
    current: list[SegmentName] = []
    stale: list[SegmentName] = []
    newest_epoch = 0
    for found in sorted(names, key=lambda name: (name.segno, -name.epoch)):
        newest_epoch = max(newest_epoch, found.epoch)
        (current if found.epoch == newest_epoch else stale).append(found)
    return Listing(current, stale, foreign)


def highest_epoch(files: Files, root: str) -> int:
    """The latest epoch that left a segment; 0 if none did."""
    parts = [part for part in _SUFFIXES if files.stat(f"{root}/{part}") is not None]
    listings = [list_segments(files, root, part) for part in parts]
    return max((name.epoch for found in listings for name in (*found.current, *found.stale)), default=0)


# ------------------------------------------------------------------------------------------------------------ safety


def check_safe(files: Files, root: str) -> None:
    """Refuse a directory in which another user may write. Root is the exception: it takes what it is given."""
    found = files.stat(root)
    user = files.identity().user
    if found is None:
        return
    if not found.is_dir:
        raise NotAQueue(root, "it is a file")
    if user == 0:
        return
    if found.uid != user:
        raise UnsafeDirectory(root, f"belongs to user {found.uid}, this process runs as {user}")
    if found.mode & 0o022:
        raise UnsafeDirectory(root, f"may be written by others (mode {found.mode:04o})")


# ------------------------------------------------------------------------------------------------------------ FORMAT


def read_format(files: Files, root: str) -> tuple[FileHeader | None, list[str]]:
    """The directory's header, and complaints about it. None: there is no log here yet, and one may be made.

    A FORMAT that is missing or damaged is replaced by what the segments say: each repeats the uuid.
    """
    names = set(files.list_dir(root))
    header = _read_header(files, f"{root}/{FORMAT}") if FORMAT in names else None
    if header is not None and header.kind == FileKind.FORMAT:
        if lacking := unsupported(header):
            raise FormatError(root, lacking)
        return header, []
    for part, kind in (("log", FileKind.LOG_SEGMENT), ("index", FileKind.INDEX_SEGMENT)):
        for found in reversed(list_segments(files, root, part).current) if part in names else ():
            header = _read_header(files, found.path)
            if header is not None and header.kind == kind:
                if lacking := unsupported(header):
                    raise FormatError(root, lacking)
                complaint = "damaged" if FORMAT in names else "missing"
                return FileHeader(FileKind.FORMAT, header.uuid, 0, 0, 0), [complaint]
    if FORMAT in names:
        raise NotAQueue(root, f"its file {FORMAT} is no header of ours, and no segment tells more")
    strangers = sorted(name for name in names if not _leftover(files, root, name))
    if strangers:
        raise NotAQueue(root, f"it has no {FORMAT}, and holds {', '.join(strangers[:3])}")
    return None, []


def _leftover(files: Files, root: str, name: str) -> bool:
    """Whether a creation that was interrupted may have left this."""
    if name in _SUFFIXES:
        found = files.stat(f"{root}/{name}")
        return found is not None and found.is_dir and not files.list_dir(f"{root}/{name}")
    return name.endswith(".tmp") or _LOCK.fullmatch(name) is not None


def _read_header(files: Files, path: str) -> FileHeader | None:
    handle = files.open(path)
    try:
        return decode_file_header(files.read_at(handle, FILE_HEADER_SIZE, 0))
    finally:
        files.close(handle)


# ---------------------------------------------------------------------------------------------------------- creation


def create_layout(files: Files, root: str, parts: tuple[str, ...], uuid: bytes) -> FileHeader:
    """The directories and FORMAT, durable when this returns. May be repeated after a crash at any point of it."""
    names = set(files.list_dir(root))
    for part in parts:
        if part not in names:
            files.make_dir(f"{root}/{part}")
    if FORMAT not in names:
        temporary = f"{root}/{FORMAT}.{files.random_bytes(4).hex()}.tmp"
        handle = files.create(temporary)
        try:
            write_fully(files, handle, [encode_file_header(FileHeader(FileKind.FORMAT, uuid, 0, 0, 0))], 0)
            files.sync(handle)
        finally:
            files.close(handle)
        files.sync_dir(root)  # the parts first: FORMAT promises them
        # And the directory itself: it may be there only because an opener before us was interrupted.
        try:
            files.sync_dir(root.rpartition("/")[0] or "/")
        except PermissionError:
            pass  # a parent that may not be read was made by somebody who saw to it
        files.link(temporary, f"{root}/{FORMAT}")
        remove_quietly(files, temporary)
    files.sync_dir(root)
    return FileHeader(FileKind.FORMAT, uuid, 0, 0, 0)


def remove_garbage(files: Files, root: str) -> None:
    """The owner removes what crashes left: files that never got their name."""
    for name in files.list_dir(root):
        # The temporary files of locks are for `lock` to remove: one may be about to be linked.
        if name.endswith(".tmp") and name.startswith(FORMAT):
            remove_quietly(files, f"{root}/{name}")
