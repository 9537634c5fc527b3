"""Task keys: names that clients give to messages. One key, one message; dictionaries both ways, only when used.

A key stays with its message until that is GONE, or until a later message takes it over. Whether it may is the
ledger's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from daskqueue_core.batch import Run
from daskqueue_core.runs import total

__all__ = ["Keys"]


class Keys:
    """Which message has which key."""

    __slots__ = ("key_of", "seq_of")

    def __init__(self) -> None:
        self.seq_of: dict[str, int] = {}
        self.key_of: dict[int, str] = {}

    def name(self, seq: int, key: str) -> None:
        """Message `seq` is called `key` from now on, and no other is."""
        old = self.seq_of.get(key)
        if old is not None:
            del self.key_of[old]
        self.seq_of[key] = seq
        self.key_of[seq] = key

    def drop(self, runs: Sequence[Run]) -> None:
        """These messages are GONE: their keys are free."""
        if total(runs) <= len(self.key_of):
            seqs = [seq for start, stop in runs for seq in range(start, stop) if seq in self.key_of]
        else:
            seqs = [seq for start, stop in runs for seq in self.key_of if start <= seq < stop]
        for seq in seqs:
            del self.seq_of[self.key_of.pop(seq)]

    def validate(self) -> None:
        """AssertionError if the two directions differ."""
        assert self.seq_of == {key: seq for seq, key in self.key_of.items()}, "keys and messages do not agree"
