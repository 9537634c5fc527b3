"""The records of a directory, one by one, as they are on disk: for people who want to see, and for second readers.

Not here: what follows from the records (`replayed`). Invariant: what cannot be decoded is a row like any other, with
`problem` in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, Final
from zlib import crc32

from daskqueue_core.batch import times_of
from daskqueue_core.outcomes import Report
from daskqueue_storage.body import parse
from daskqueue_storage.files import Files, read_or_zeros
from daskqueue_storage.format import (
    FILE_HEADER_SIZE,
    RECORD_HEADER_SIZE,
    Flag,
    RecordHeader,
    RecordType,
    decode_epoch,
    decode_seal,
)
from daskqueue_storage.index import decode_snapshot
from daskqueue_storage.records import event_of, payload_of, put_of
from daskqueue_storage.recovery import start_of, survey_beside_writer
from daskqueue_storage.replayed import again_while_it_vanishes, has_vanished
from daskqueue_storage.scan import Hole, Read, scan
from daskqueue_storage.segment import SegmentInfo

__all__ = ["records"]

Row = dict[str, Any]
_HOLDS_MESSAGES: Final = (RecordType.PUT, RecordType.COPY)
_NONSENSE: Final = (ValueError, IndexError, TypeError, KeyError, OverflowError)


def records(files: Files, root: str, uuid: bytes, parts: list[str]) -> Iterator[Row]:
    """All of both logs: a row for each record that counts, and for each hole between them."""
    for part in parts:
        for info in _segments(files, root, uuid, part):
            try:
                yield from _segment(files, f"{part}/{info.path.rpartition('/')[2]}", info)
            except OSError as problem:
                if not has_vanished(problem):
                    raise
                # Its writer deleted it: nobody needs its records any more.


def _segments(files: Files, root: str, uuid: bytes, part: str) -> list[SegmentInfo]:
    return again_while_it_vanishes(lambda _: survey_beside_writer(files, root, part, uuid)).segments


def _segment(files: Files, name: str, info: SegmentInfo) -> Iterator[Row]:
    if info.empty:
        return
    handle = files.open(info.path)
    try:
        read: Read = lambda size, offset: read_or_zeros(files, handle, size, offset)
        for part in scan(read, FILE_HEADER_SIZE, info.valid, info.salt):
            if isinstance(part, Hole):
                yield {"file": name, "pos": part.start, "type": "", "problem": f"no record up to byte {part.stop}"}
                continue
            row: Row = {"file": name, "pos": part.pos, "rno": part.rno, "type": _name(part.type), "time": part.time}
            body = read(part.blen, part.pos + RECORD_HEADER_SIZE)
            if len(body) != part.blen or crc32(body) != part.bcrc:
                row["problem"] = f"its {part.blen} bytes do not verify"
            else:
                try:
                    row.update(_content(part, body))
                except _NONSENSE as problem:
                    row["problem"] = f"it makes no sense: {problem}"
            yield row
    finally:
        files.close(handle)


def _name(number: int) -> str:
    try:
        return RecordType(number).name
    except ValueError:
        return str(number)


def _content(header: RecordHeader, body: bytes) -> Row:
    kind = header.type
    if kind in _HOLDS_MESSAGES:
        return _put(header, body) if header.flags & Flag.EXT else _messages(header, body)
    if kind == RecordType.SNAPSHOT:
        return _snapshot(header, body)
    if kind == RecordType.EPOCH:
        start, rows = decode_epoch(body)
        return {"epoch": header.epoch, "next_seq": header.base, "start": start, "sealed": rows}
    if kind in (RecordType.ROLL, RecordType.CLOSE):
        return {"next_seq": header.base, **decode_seal(body)._asdict()}
    if kind == RecordType.RETIRED:
        return {"segments": parse(header, body).runs, "start": start_of(body)}
    if kind not in frozenset(RecordType):
        return {"count": header.count, "base": header.base, "body": body}
    return _event(header, body)


def _messages(header: RecordHeader, body: bytes) -> Row:
    """Of a plain log."""
    return {"base": header.base, "count": header.count, "messages": parse(header, body).payloads}


def _put(header: RecordHeader, body: bytes) -> Row:
    """Of a queue: a batch, with what is not as usual."""
    found = put_of(header, body)
    batch = found.batch
    payload, lengths = payload_of(header, body, found.sizes)
    row: Row = {"base": header.base, "count": header.count, "put_at": found.put_at}
    options = {
        "producer": found.producer,
        "client": batch.client,
        "first": batch.first,
        "kind": batch.kind,
        "keep": batch.keep,
        "priority": batch.priority,
        "ready_at": batch.ready_at,
        "ready_ats": list(times_of(batch.ready_ats)),
        "expires_at": batch.expires_at,
        "keys": batch.keys,
        "tags": batch.tags,
        "function": batch.function,
        "shared": batch.shared,
        "control": batch.control,
        "resent": batch.resent,
        "suspect": found.suspect,
        "max_crashes": 0 if batch.max_crashes == 3 else batch.max_crashes,
        "following": found.following,
        "goes_on": found.goes_on,
        "offset": batch.offset,
    }
    row.update({name: value for name, value in options.items() if value})
    if not lengths:
        return {**row, "block": payload}
    ends = batch._replace(lengths=lengths).ends()
    return {**row, "messages": [payload[start:end] for start, end in zip((0, *ends), ends)]}


def _snapshot(header: RecordHeader, body: bytes) -> Row:
    """What it holds, counted."""
    state = decode_snapshot(parse(header, body).payloads[0], {})
    held = state.state
    return {
        "covered": state.covered,
        "uuid": held.uuid,
        "epoch": held.epoch,
        "taken_at": held.time,
        "batches": len(held.entries),
        "requeued": len(held.again),
        "dead_letters": len(held.letters),
        "results": len(held.kept.kept),
        "outboxes": len(held.mail.outboxes),
        "size": header.blen,
    }


def _event(header: RecordHeader, body: bytes) -> Row:
    event, ride, before = event_of(header, body)
    row: Row = {"at": event.time, "puts": before}
    row.update((name, value) for name, value in event._asdict().items() if name != "time")
    if isinstance(ride, Report):
        row["report"] = {"start": ride.start, "stop": ride.stop, "values": ride.values}
    elif isinstance(ride, dict):
        row["failures"] = [
            {"seq": seq, "reason": each.reason, "text": each.text, "error": each.blob, "body": each.body}
            for seq, each in ride.items()
        ]
    return {name: value.value if isinstance(value, Enum) and name == "reason" else value for name, value in row.items()}
