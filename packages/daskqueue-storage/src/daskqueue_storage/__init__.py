"""daskqueue-storage: durable logs and queues in a directory, without Dask and without a server.

    from daskqueue_storage import DurableQueue, SegmentedLog

Pure Python, standard library. Import costs nothing and configures nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daskqueue_storage.__about__ import __version__

if TYPE_CHECKING:
    from daskqueue_storage.errors import (
        AccessError,
        ClosedError,
        DamagedLog,
        DamagedRecord,
        DiskFullError,
        FencedError,
        FormatError,
        LockedError,
        NotAQueue,
        OffsetError,
        ReadOnlyError,
        RecordTooLarge,
        StorageError,
        UnsafeDirectory,
        WriterFailedError,
    )
    from daskqueue_storage.log import LogStats, SegmentedLog
    from daskqueue_storage.queue import DurableQueue
    from daskqueue_storage.read_only import ReadOnlyQueue
    from daskqueue_storage.report import Damage, Problem, RecoveryReport
    from daskqueue_storage.verify import VerifyReport, verify

_HOMES = {
    "AccessError": "errors",
    "ClosedError": "errors",
    "Damage": "report",
    "DamagedLog": "errors",
    "DamagedRecord": "errors",
    "DiskFullError": "errors",
    "DurableQueue": "queue",
    "FencedError": "errors",
    "FormatError": "errors",
    "LockedError": "errors",
    "LogStats": "log",
    "NotAQueue": "errors",
    "OffsetError": "errors",
    "Problem": "report",
    "ReadOnlyError": "errors",
    "ReadOnlyQueue": "read_only",
    "RecordTooLarge": "errors",
    "RecoveryReport": "report",
    "SegmentedLog": "log",
    "StorageError": "errors",
    "UnsafeDirectory": "errors",
    "VerifyReport": "verify",
    "WriterFailedError": "errors",
    "verify": "verify",
}

__all__ = [
    "AccessError",
    "ClosedError",
    "Damage",
    "DamagedLog",
    "DamagedRecord",
    "DiskFullError",
    "DurableQueue",
    "FencedError",
    "FormatError",
    "LockedError",
    "LogStats",
    "NotAQueue",
    "OffsetError",
    "Problem",
    "ReadOnlyError",
    "ReadOnlyQueue",
    "RecordTooLarge",
    "RecoveryReport",
    "SegmentedLog",
    "StorageError",
    "UnsafeDirectory",
    "VerifyReport",
    "WriterFailedError",
    "__version__",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Names resolve when they are used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'daskqueue_storage' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"daskqueue_storage.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
