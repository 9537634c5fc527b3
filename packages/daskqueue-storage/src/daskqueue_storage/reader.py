"""Reading a log: from a message's number to its bytes. Serves the writer's own process and read-only openers alike.

Not here: finding out which segments count (`recovery`), nor what may be seen yet: `end` is the caller's.

Invariants: what is returned was verified, header and body, at this very reading. Damage costs the record it is in; it
is reported once and remembered. At most `_INDEXED` sealed segments have their index in memory.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple
from zlib import crc32

from daskqueue_storage.body import payloads_of
from daskqueue_storage.errors import DamagedRecord, OffsetError, StorageError
from daskqueue_storage.files import Files, read_or_zeros
from daskqueue_storage.format import RECORD_HEADER_SIZE, decode_header
from daskqueue_storage.recovery import build_index
from daskqueue_storage.report import Damage
from daskqueue_storage.segment import RecordIndex, SegmentInfo, Spot

__all__ = ["Loaded", "LogReader"]

_INDEXED: Final = 16
_HANDLES: Final = 32
_PATIENCE: Final = 10


class Loaded(NamedTuple):
    """The messages of one record."""

    base: int
    time: int
    payloads: list[bytes]

    @property
    def stop(self) -> int:
        """The number behind the last."""
        return self.base + len(self.payloads)


class _Handles:
    """Open files, the least recently used closed first, never one that is being read."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._limit = _HANDLES
        self._open: OrderedDict[str, list[int]] = OrderedDict()  # path: handle, readers

    def borrow(self, path: str) -> int:
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                entry = self._open[path] = [self._files.open(path), 0]
                self._shrink()
            self._open.move_to_end(path)
            entry[1] += 1
            return entry[0]

    def give_back(self, path: str) -> None:
        with self._lock:
            entry = self._open[path]
            entry[1] -= 1
            self._shrink()

    def forget(self, path: str) -> None:
        """Close that one, unless it is being read: then it goes when its turn comes."""
        with self._lock:
            if path in self._open and not self._open[path][1]:
                self._files.close(self._open.pop(path)[0])

    def close(self) -> None:
        """Close all; those that are being read when they are given back."""
        with self._lock:
            self._limit = 0
            self._shrink()

    def _shrink(self) -> None:
        for path in list(self._open):
            if len(self._open) <= self._limit:
                return
            if not self._open[path][1]:
                self._files.close(self._open.pop(path)[0])


class LogReader:
    """The segments of a log, by message number. Thread-safe."""

    def __init__(
        self, files: Files, root: str, segments: list[SegmentInfo], *, on_vanished: Callable[[], None] | None = None
    ) -> None:
        self._files = files
        self._root = root
        self._on_vanished = on_vanished
        self._handles = _Handles(files)
        self._lock = threading.RLock()
        self._indexed: OrderedDict[int, SegmentInfo] = OrderedDict()
        self._last: Loaded | None = None
        self.segments: list[SegmentInfo] = []
        self._firsts: list[int] = []
        self.damaged: list[Damage] = []
        for info in segments:
            self.add(info)

    # --------------------------------------------------------------------------------------------------- the segments

    def add(self, info: SegmentInfo) -> None:
        """One more segment, behind all others."""
        with self._lock:
            self.segments.append(info)
            self._firsts.append(info.first_seq)
            if info.index is not None:
                self._remember(info)

    def drop(self, count: int) -> None:
        """The first `count` segments are gone."""
        with self._lock:
            gone, self.segments, self._firsts = self.segments[:count], self.segments[count:], self._firsts[count:]
            self._last = None
            for info in gone:
                self._indexed.pop(info.segno, None)
                self._handles.forget(info.path)

    def replace(self, segments: list[SegmentInfo]) -> None:
        """The segments were looked at anew."""
        with self._lock:
            self.drop(len(self.segments))
            for info in segments:
                self.add(info)

    def close(self) -> None:
        """Let go of all files."""
        self._handles.close()

    @property
    def first(self) -> int:
        """The first message number that may exist."""
        return self._firsts[0] if self._firsts else 0

    # --------------------------------------------------------------------------------------------------------- reading

    def load(self, seq: int) -> tuple[Loaded | None, int]:
        """The record that holds `seq`, and the number to go on at. None: no message has that number.

        `DamagedRecord` if it is there and does not verify.
        """
        last = self._last  # reading message by message must not read the record each time
        if last is not None and last.base <= seq < last.stop:
            return last, last.stop
        for _ in range(_PATIENCE):
            try:
                info, spot, row = self._find(seq)
                if info is None or spot is None:
                    return None, self._end
                if seq < spot.base:
                    return None, spot.base
                loaded = self._read(info, spot, row)
            except FileNotFoundError:
                if self._on_vanished is not None:
                    self._on_vanished()  # the writer let it go; look at what there is
                continue  # or we did, in another thread, and the segments are others now
            self._last = loaded
            return loaded, loaded.stop
        raise StorageError(self._root, f"{self._root}: the segment of message {seq} was deleted by somebody else")

    def records(self, start: int, end: int) -> Iterator[Loaded | DamagedRecord]:
        """The records that hold the messages from `start` up to `end`; damaged ones as the error they would raise."""
        seq = start
        while seq < end:
            try:
                loaded, seq = self.load(seq)
            except DamagedRecord as damage:
                seq = damage.next_offset
                yield damage
                continue
            if loaded is not None:
                yield loaded

    def missing(self, seq: int, next_seq: int) -> OffsetError:
        """What to tell whoever asks for a number that no message has."""
        why = "it was truncated" if seq < self.first else "the number was lost or never given"
        return OffsetError(self._root, seq, next_seq, why)

    @property
    def _end(self) -> int:
        return self.segments[-1].next_seq if self.segments else 0

    def _find(self, seq: int) -> tuple[SegmentInfo | None, Spot | None, int]:
        """The record that holds `seq`, or else the first behind it."""
        with self._lock:
            at = max(0, bisect_right(self._firsts, seq) - 1)
            segments = self.segments  # `drop` makes a new list
        for info in islice(segments, at, None):
            if seq >= info.next_seq:
                continue
            index = self._index(info)
            row = max(0, index.row(seq))
            spot = index.spot(row)
            if spot is not None and seq >= spot.base + spot.count:
                row += 1
                spot = index.spot(row)
            if spot is not None:
                return info, spot, row
        return None, None, 0

    def _index(self, info: SegmentInfo) -> RecordIndex:
        index = info.index
        if index is not None:
            return index
        with self._lock:
            if info.index is None:
                handle = self._handles.borrow(info.path)
                try:
                    known = set(self.damaged)
                    self.damaged += [item for item in build_index(self._files, handle, info) if item not in known]
                finally:
                    self._handles.give_back(info.path)
                self._remember(info)
            assert info.index is not None
            return info.index

    def _remember(self, info: SegmentInfo) -> None:
        self._indexed[info.segno] = info
        for segno in list(self._indexed):
            if len(self._indexed) <= _INDEXED:
                return
            if self._indexed[segno].sealed:  # the one that grows keeps its index
                self._indexed.pop(segno).index = None

    def _read(self, info: SegmentInfo, spot: Spot, row: int) -> Loaded:
        index = info.index
        after = index.spot(row + 1) if index is not None else None
        stop = info.valid if after is None else after.pos
        handle = self._handles.borrow(info.path)
        try:
            data = read_or_zeros(self._files, handle, stop - spot.pos, spot.pos)
        finally:
            self._handles.give_back(info.path)
        header = decode_header(data, 0, spot.pos, info.salt)
        if header is not None:
            body = data[RECORD_HEADER_SIZE : RECORD_HEADER_SIZE + header.blen]
            if len(body) == header.blen and crc32(body) == header.bcrc:
                try:
                    return Loaded(spot.base, header.time, payloads_of(header, body))
                except ValueError:
                    pass  # written so by somebody else's mistake; as good as damaged
        damage = Damage(info.path, spot.pos, stop, 1)
        with self._lock:
            if damage not in self.damaged:
                self.damaged.append(damage)
        raise DamagedRecord(info.path, spot.pos, spot.base, spot.base + spot.count)
