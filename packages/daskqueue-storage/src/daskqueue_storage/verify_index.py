"""Whether the index of a queue makes sense, and agrees with its log and with itself.

- Every SNAPSHOT and every event decodes, and names only messages that had been put.
- Every snapshot is what the one before it becomes by what was recorded since. That says that both are right, and that
  recovery from the older one, should the newest rot, leads to the same queue.
- Every message that has not ended has its payload, verified, at the place the index knows.

Not here: bytes (`verify`). What memory alone knows is not compared: deadlines, progress, what clients have collected,
exceptions that were dropped for want of room, and whether a message whose time has come was noticed to be due.

Invariant: bytes that verify and make no sense are a `Problem`, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from errno import ENOENT
from typing import Any, Final, NamedTuple
from zlib import crc32

from daskqueue_core.events import Put
from daskqueue_core.runs import clean
from daskqueue_core.states import ALL_BYTES, ByteClass, MessageFlag, MessageState
from daskqueue_storage.body import parse
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.files import Files, read_or_zeros
from daskqueue_storage.format import FILE_HEADER_SIZE, RECORD_HEADER_SIZE, RecordHeader, RecordType
from daskqueue_storage.index import decode_snapshot
from daskqueue_storage.records import event_of, put_of
from daskqueue_storage.recovery import Survey
from daskqueue_storage.replayed import LookedAt, Replayed, cut
from daskqueue_storage.report import Problem
from daskqueue_storage.scan import Hole, Read, scan
from daskqueue_storage.segment import SegmentInfo

__all__ = ["IndexReport", "check_index"]

_HOLDS_MESSAGES: Final = (RecordType.PUT, RecordType.COPY)
_WAITING: Final = (MessageState.SCHEDULED, MessageState.READY)
_NO_EVENTS: Final = (RecordType.EPOCH, RecordType.ROLL, RecordType.CLOSE, RecordType.RETIRED)
_NONSENSE: Final = (ValueError, IndexError, TypeError, KeyError, AssertionError, OverflowError)
_WITH: Final = {flag: ByteClass(byte for byte in ALL_BYTES if byte & flag) for flag in MessageFlag}
_FEW: Final = 20  # problems of one sort that are told


class IndexReport(NamedTuple):
    """What is in an index."""

    segments: int
    records: int
    events: int
    snapshots: int
    compared: int  # snapshots that were compared with a replay
    dropped: int  # messages named by events that a replay could not apply: lost with what was not synced
    size_bytes: int


class _Known(NamedTuple):
    """A snapshot: where it stands, and the first record of the log that it does not know."""

    at: int  # which segment
    header: RecordHeader
    covered: int


def check_index(
    files: Files, root: str, uuid: bytes, found: dict[str, Survey], *, deep: bool, whole: bool, is_last: bool
) -> tuple[IndexReport, list[Problem]]:
    """`whole`: no byte is damaged, so everything must fit. Unless it `is_last`, what is missing is looked for again."""
    check = _Check(files, root, uuid, found)
    check.segments(deep)
    if deep and whole:
        check.compare()
    check.state(deep, whole, is_last)
    report = IndexReport(
        len(check.index),
        0,
        check.events,
        len(check.known),
        check.compared,
        check.dropped,
        sum(info.valid for info in check.index),
    )
    return report, check.problems


class _Check:
    """Looks at one index. `problems` says what was found."""

    def __init__(self, files: Files, root: str, uuid: bytes, found: dict[str, Survey]) -> None:
        self._files = files
        self._root = root
        self._uuid = uuid
        self._found = found
        self.index = found["index"].segments
        self.log = found["log"].segments
        self.known: list[_Known] = []
        self.events = self.compared = self.dropped = 0
        self.problems: list[Problem] = []

    # -- record by record

    def segments(self, deep: bool) -> None:
        """Decode everything; not `deep`: the newest segment."""
        by_number = {info.segno: info for info in self.log}
        for at, info in enumerate(self.index):
            if not deep and info is not self.index[-1]:
                continue
            for header, body in self._records(info):
                if header.type in _NO_EVENTS:
                    continue
                try:
                    if header.type == RecordType.SNAPSHOT:
                        snapshot = decode_snapshot(parse(header, body).payloads[0], by_number)
                        self.known.append(_Known(at, header, snapshot.covered))
                    else:
                        self._event(info, header, body)
                except _NONSENSE as problem:
                    what = "snapshot" if header.type == RecordType.SNAPSHOT else f"record of type {header.type}"
                    self._add(info.path, header.pos, f"its {what} makes no sense: {problem}", "what it says")

    def _event(self, info: SegmentInfo, header: RecordHeader, body: bytes) -> None:
        event, _, before = event_of(header, body)
        assert not isinstance(event, Put)
        self.events += 1
        unknown = [run for run in event.runs if run[1] > before]
        if unknown:
            what = f"a record of type {header.type} names messages {unknown[:3]}, and {before} had been put"
            self._add(info.path, header.pos, what, "nothing, they are left out")

    def _records(self, info: SegmentInfo) -> Iterator[tuple[RecordHeader, bytes]]:
        if info.empty:
            return
        handle = self._files.open(info.path)
        try:
            read: Read = lambda size, offset: read_or_zeros(self._files, handle, size, offset)
            for part in scan(read, FILE_HEADER_SIZE, info.valid, info.salt):
                if isinstance(part, Hole):
                    continue
                body = read(part.blen, part.pos + RECORD_HEADER_SIZE)
                if len(body) == part.blen and crc32(body) == part.bcrc:
                    yield part, body
        finally:
            self._files.close(handle)

    # -- snapshot by snapshot

    def compare(self) -> None:
        """Each snapshot with what leads to it."""
        begins = not self.index or not self.index[0].base_rno
        begins = begins and (not self.log or not self.log[0].base_rno)
        for number, each in enumerate(self.known):
            if not number and not begins:
                continue  # what led to it is retired
            info = self.index[each.at]
            log = list(self._log_before(each.covered))
            before = [*self.index[: each.at], cut(info, each.header.pos, each.header.rno - 1)]
            after = [*self.index[: each.at], cut(info, each.header.end, each.header.rno)]
            try:
                led, said = self._replay(log, before), self._replay(log, after)
            except _NONSENSE as problem:
                self._add(info.path, each.header.pos, f"its snapshot cannot be restored: {problem!r}", "what it says")
                continue
            try:
                self.compared += 1
                for what in _differences(led, said)[:_FEW]:
                    text = f"its snapshot is not what the records before it lead to: {what}"
                    self._add(info.path, each.header.pos, text, "one of both is wrong")
            finally:
                led.close()
                said.close()

    def _log_before(self, rno: int) -> Iterator[SegmentInfo]:
        """The log as it was before that record."""
        for info in self.log:
            if info.last_rno < rno:
                yield cut(info, info.valid, info.last_rno)
            elif info.base_rno < rno:
                last = [header for header in self._headers(info) if header.rno < rno]
                if last:
                    yield cut(info, last[-1].end, last[-1].rno)

    def _headers(self, info: SegmentInfo) -> Iterator[RecordHeader]:
        handle = self._files.open(info.path)
        try:
            read: Read = lambda size, offset: read_or_zeros(self._files, handle, size, offset)
            for part in scan(read, FILE_HEADER_SIZE, info.valid, info.salt):
                if not isinstance(part, Hole):
                    yield part
        finally:
            self._files.close(handle)

    def _replay(self, log: Sequence[SegmentInfo], index: Sequence[SegmentInfo]) -> Replayed:
        store = LookedAt(self._files, self._root, self._uuid, self._found, log=log, index=index)
        return Replayed(store, lambda: 0)

    # -- the whole

    def state(self, deep: bool, whole: bool, is_last: bool) -> None:
        """What opening makes of it all; `deep`: every payload must be there; `whole`: it must fit."""
        newest = self.index[-1].path if self.index else f"{self._root}/index"
        try:
            queue = self._replay([cut(info, info.valid, info.last_rno) for info in self.log], self.index)
        except _NONSENSE as problem:
            self._add(newest, -1, f"the queue cannot be restored: {problem!r}", "everything")
            return
        try:
            self.dropped = queue._ledger.dropped
            if not deep:
                return
            try:
                if whole:
                    queue.validate()
            except AssertionError as problem:
                self._add(newest, -1, f"what it says contradicts itself: {problem}", "nothing by that alone")
            for text, path, offset in _missing(queue):
                if whole and not is_last and (offset < 0 or self._files.stat(path) is None):
                    raise FileNotFoundError(ENOENT, "deleted while it was looked at", path)
                self._add(path, offset, text, "their payload")
        finally:
            queue.close()

    def _add(self, path: str, offset: int, what: str, lost: str) -> None:
        self.problems.append(Problem(path, offset, what, lost))


def _missing(queue: Replayed) -> Iterator[tuple[str, str, int]]:
    """Messages that have not ended and whose record is not where it should be: what, where."""
    shelf = queue._payloads.shelf
    for start, stop in queue.without_payload():
        yield f"messages {start} to {stop - 1}: their segment is gone", f"{queue._store.root}/log", -1
    for entry in queue._payloads.disk_entries():
        name, place = f"messages {entry.base} to {entry.stop - 1}", entry.place
        if not entry.live or place is None:
            continue
        try:
            header, body = shelf.read(place, entry.base, entry.stop - entry.base)
            record = put_of(header, body)
        except (DamagedRecord, ValueError) as problem:
            yield f"{name}: {problem}", place.segment.path, place.pos
            continue
        sizes = len(entry.batch.body), len(entry.batch.lengths) > 0
        found = record.sizes.body, record.sizes.lengths > 0
        if header.type not in _HOLDS_MESSAGES or (header.base, header.count) != (entry.base, entry.batch.count):
            yield f"{name}: another record stands where theirs should", place.segment.path, place.pos
        elif sizes != found:
            yield f"{name}: their payload has other sizes {found} than {sizes}", place.segment.path, place.pos


def _differences(led: Replayed, said: Replayed) -> list[str]:
    """What two queues do not agree on."""
    ours, theirs = _facts(led), _facts(said)
    out = []
    for name, mine in ours.items():
        other = theirs[name]
        if mine == other:
            continue
        if isinstance(mine, dict):
            keys = [key for key in dict.fromkeys((*mine, *other)) if mine.get(key) != other.get(key)]
            out += [f"{name} {key}: {mine.get(key)!r} became {other.get(key)!r}" for key in keys[:3]]
        else:
            out.append(f"{name}: {mine!r} became {other!r}")
    return out


def _facts(queue: Replayed) -> dict[str, Any]:
    """All that is on disk of a queue, so that two can be compared."""
    ledger = queue._ledger
    runs = {state: ledger.runs_in(state) for state in MessageState if state not in (*_WAITING, MessageState.GONE)}
    waiting = clean([run for state in _WAITING for run in ledger.runs_in(state)])
    unfinished = [*waiting, *runs[MessageState.DELIVERED]]
    flagged = {flag.name: ledger.pages.select([(0, ledger.puts)], _WITH[flag]) for flag in MessageFlag}
    entries = {
        entry.base: (
            entry.batch.count,
            entry.live,
            entry.known,
            queue._routes[entry.route],
            None if entry.place is None else (entry.place.segment.segno, entry.place.pos, entry.place.size),
        )
        for entry in queue._payloads.disk_entries()
    }
    return {
        "messages waiting": waiting,
        **{f"messages {state.name.lower()}": each for state, each in runs.items()},
        "flag": flagged,
        "attempts of": {run: tried for run in unfinished if (tried := ledger.attempts_of(*run))},
        "lease": {lease.id: (lease.owner, tuple(lease.runs), lease.once) for lease in ledger.leases.by_id.values()},
        "key": dict(ledger.keys.seq_of),
        "crashes of": dict(ledger.crash_counts),
        "batch": entries,
        "dead letter": {card.seq: (card.reason, card.attempts, card.crashes) for card in queue.dead_letters()},
        "requeued": {seq: (again.life, again.own_bytes) for seq, again in queue._payloads._again.items()},
        "results": sorted(
            (row[1], row[2].first, row[2].index, row[2].runs, crc32(row[2].values))
            for row in queue._kept.rows().kept
            if row[3] is not None
        ),
    }
