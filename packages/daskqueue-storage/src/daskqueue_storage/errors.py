"""The error tree of the store: one class per cause, with fields instead of text to be parsed.

    StorageError
    ├── NotAQueue            the directory is not one of ours, or not the one that was asked for
    ├── FormatError          written by a version that knows more than this one
    ├── AccessError          the operating system does not let us in (also an OSError)
    ├── UnsafeDirectory      another user's directory, or one that others may write to
    ├── LockedError          somebody else writes here
    ├── FencedError          somebody else took over from us
    ├── WriterFailedError    the disk refused to keep what was written; open again
    ├── DiskFullError        no room; nothing was changed, try again when there is
    ├── DamagedRecord        a record's bytes are not those that were written
    ├── DamagedLog           found damage while opening with on_damage="raise"
    ├── OffsetError          no message has that offset            (also a LookupError)
    ├── RecordTooLarge       one batch is more than a record holds (also a ValueError)
    ├── ReadOnlyError        opened with mode="ro"
    └── ClosedError          closed by this process

Damaged content is reported, never raised, unless it is what was asked for. Mistakes of a caller that Python has a word
for (a negative count, a wrong type) are ValueError and TypeError.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccessError",
    "ClosedError",
    "DamagedLog",
    "DamagedRecord",
    "DiskFullError",
    "FencedError",
    "FormatError",
    "LockedError",
    "NotAQueue",
    "OffsetError",
    "ReadOnlyError",
    "RecordTooLarge",
    "StorageError",
    "UnsafeDirectory",
    "WriterFailedError",
]


class StorageError(Exception):
    """Everything the store raises of its own. `path` is the directory or file it is about."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self), self.__dict__)


class NotAQueue(StorageError):
    """The directory is not one of ours, or another one than was asked for. Nothing in it was changed."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, f"{path} is not the log or queue that was asked for: {why}; nothing was changed")


class FormatError(StorageError):
    """The data is intact and newer than this version understands."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, f"{path}: {what}; open it with a newer daskqueue-storage")


class AccessError(StorageError, OSError):
    """The operating system refused: no permission, no such parent directory, a disk that does not answer."""

    def __init__(self, path: str, problem: OSError) -> None:
        where = f" ({problem.filename})" if problem.filename not in (None, path) else ""
        advice = "see to the disk it is on and try again"
        if isinstance(problem, PermissionError):
            advice = "this user needs the right to read it, and to write there unless it is only read"
        elif isinstance(problem, (FileNotFoundError, NotADirectoryError)):
            advice = "create the directory above it first, or choose another path"
        super().__init__(path, f"{path} cannot be opened: {problem.strerror or problem}{where}; {advice}")
        self.errno = problem.errno

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self), {**self.__dict__, "errno": self.errno})


class UnsafeDirectory(StorageError):
    """Another user could put bytes of theirs into the directory."""

    def __init__(self, path: str, why: str) -> None:
        why = f"{path} {why}. Whoever can write there decides what you will read"
        super().__init__(path, f"{why}: choose a directory of your own (mode 0700), or say allow_shared=True")


class LockedError(StorageError):
    """Somebody else has the directory open for writing, and is not known to be dead."""

    def __init__(self, path: str, holder: str, *, host: str = "", pid: int = 0, age_s: float | None = None) -> None:
        self.holder = holder
        self.host = host
        self.pid = pid
        self.age_s = age_s
        super().__init__(
            path,
            f"{path} is open for writing by {holder}. Close it there, open it with mode='ro', or give wait= at least "
            f"its time to live: then it is taken over if the holder shows no sign of life",
        )


class FencedError(StorageError):
    """This writer lost its lease: what it wrote since was not acknowledged and will not be read. Open again."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, f"{path}: {why}. This object no longer writes; open the directory again")


class WriterFailedError(StorageError):
    """Writing or syncing failed, so nobody knows what of the unacknowledged part is on disk. Close and open again."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            path,
            f"{path}: {why}. What was acknowledged before is safe, what was not may be lost; close and open it again",
        )


class DiskFullError(StorageError):
    """No space, quota or file size left. Nothing was changed and nothing is broken: try again when there is room."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, f"{path}: {why}; nothing was changed, make room and try again")


class DamagedRecord(StorageError):
    """A record's bytes do not verify: the messages in it are lost, those behind it are not.

    `position` is the place in the file; `offset` the first message known to be lost, `next_offset` where to go on.
    """

    def __init__(self, path: str, position: int, offset: int, next_offset: int) -> None:
        self.position = position
        self.offset = offset
        self.next_offset = next_offset
        super().__init__(
            path,
            f"{path} is damaged at byte {position}: message {offset} cannot be read, go on at {next_offset}",
        )


class DamagedLog(StorageError):
    """Opening found damage, and was told to refuse it. `report` says what; on_damage="report" opens it all the same."""

    def __init__(self, path: str, report: object) -> None:
        self.report = report
        super().__init__(
            path, f"{path} is damaged: {report}; open it with on_damage='report' to be served what is whole"
        )


class OffsetError(StorageError, LookupError):
    """No message has that offset: truncated, or a number that was skipped. `next_offset` is the next that exists."""

    def __init__(self, path: str, offset: int, next_offset: int, why: str) -> None:
        self.offset = offset
        self.next_offset = next_offset
        super().__init__(path, f"{path} has no message {offset}: {why}; the next one is {next_offset}")


class RecordTooLarge(StorageError, ValueError):
    """One batch is one record, and a record has limits."""

    def __init__(self, path: str, size: int, limit: int, unit: str) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            path,
            f"{path}: a batch of {size} {unit} is more than a record holds ({limit}); nothing was written, split it",
        )


class ReadOnlyError(StorageError):
    """The log was opened with mode="ro"."""

    def __init__(self, path: str) -> None:
        super().__init__(path, f"{path} is open with mode='ro'; open it with mode='rw' to change it")


class ClosedError(StorageError):
    """The log was closed in this process."""

    def __init__(self, path: str) -> None:
        super().__init__(path, f"{path} was closed by this process; open it again")


def _again(kind: type[StorageError], message: str, fields: dict[str, Any]) -> StorageError:
    """An error that travelled between processes."""
    made: StorageError = kind.__new__(kind)
    Exception.__init__(made, message)
    for name, value in fields.items():
        setattr(made, name, value)
    return made
