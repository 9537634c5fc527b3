"""What opening or reading found wrong: values for programs, sentences for people.

Not here: finding it (`recovery`, `reader`, `verify`).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Damage", "Problem", "RecoveryReport"]


class Damage(NamedTuple):
    """Bytes `start` to `stop` of a file are not what was written; `lost` records were in there."""

    path: str
    start: int
    stop: int
    lost: int


class Problem(NamedTuple):
    """Something is not as it should be, at byte `offset` of a file or for the whole of it (-1)."""

    path: str
    offset: int
    what: str
    lost: str  # in words: what cannot be had any more, or "nothing"

    def __str__(self) -> str:
        place = f" at byte {self.offset}" if self.offset >= 0 else ""
        return f"{self.path}{place}: {self.what}; lost: {self.lost}"


class RecoveryReport(NamedTuple):
    """What opening found. A torn tail is what a crash leaves, and nothing that was acknowledged."""

    clean: bool = True  # the last writer closed it
    tail_bytes: int = 0
    damaged: tuple[Damage, ...] = ()
    missing_files: tuple[str, ...] = ()
    lost_records: int = 0  # by damage and missing files
    stale_files: tuple[str, ...] = ()  # begun by a writer that had been replaced; ignored
    foreign_files: tuple[str, ...] = ()  # not ours; ignored
    seconds: float = 0.0
    reused_snapshot: bool = False  # else all that is there was replayed

    @property
    def whole(self) -> bool:
        """Nothing is damaged or missing."""
        return not self.damaged and not self.missing_files

    def __str__(self) -> str:
        said = [f"{d.path} from byte {d.start} to {d.stop} ({d.lost} records lost)" for d in self.damaged]
        said += [f"{path} is missing" for path in self.missing_files]
        said += [f"{self.lost_records} records lost in all"] if said else []
        said += [f"a torn tail of {self.tail_bytes} bytes"] if self.tail_bytes else []
        return "; ".join(said) or "whole"
