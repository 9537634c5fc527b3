"""The snapshot of a queue: everything it holds but the payloads, as the body of one record.

    plain: (version, time, position of the log, columns of the ledger, columns of the entries, rows of all the rest,
            columns of the messages that were put one by one)

Position: the first record number of the log that the snapshot does not know. The ledger comes as core's columns, the
entries (one for each batch) as columns too, so that neither costs a loop of ours per message; what they have in common
is written once. Messages put one by one take eight bytes each. Kept results, dead letters and outcomes nobody has read
stand in it as they are: with the next snapshot they are copied forward, so an old IndexSegment holds nothing that a
newer one lacks.

Not here: when a snapshot is taken, and what follows it (`queue`). Invariant: `decode(encode(state))` restores a queue
that compares equal; bytes that verify and make no sense are a `ValueError`.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from daskqueue_core.batch import Batch
from daskqueue_core.dead_letters import DeadLetter, LetterRow
from daskqueue_core.handover import HandOver
from daskqueue_core.mail import Address, MailRows
from daskqueue_core.outcomes import KeptRows, Outcome
from daskqueue_core.payloads import AgainRow, EntryRow
from daskqueue_storage import plain
from daskqueue_storage.keydir import DiskEntry, Place, slim
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.singles import Singles, SinglesRow

__all__ = ["Snapshot", "decode_snapshot", "encode_snapshot"]

VERSION: Final = 2
_NOWHERE: Final = 2**64 - 1
_KEYS: Final = Outcome._fields.index("keys")  # of who reads what is kept: the queue itself has them elsewhere
_COLUMNS: Final = (
    "QQQIQQQQQQQQQI"  # base, count, put_at, route, live, known, segno, pos, body, client, first, offset, ...
)


_SINGLES: Final = "QIIIQIQQQIQI"  # base, count, live, known, put_at, route, client, first, held, extra, segno, common


class Snapshot(NamedTuple):
    """What a SNAPSHOT record says."""

    covered: int
    state: HandOver
    places: dict[int, Place]
    singles: list[SinglesRow]


def encode_snapshot(covered: int, state: HandOver, entries: Sequence[DiskEntry], singles: Sequence[Singles]) -> bytes:
    """The body. `state` comes without entries: they are taken from `entries` and `singles`."""
    return plain.encode(
        (
            VERSION,
            sys.byteorder,
            covered,
            (state.uuid, state.epoch, state.time),
            list(state.ledger.items()),
            state.routes,
            _entries(entries),
            [(seq, _batch(template), body, key, life) for seq, template, body, key, life in state.again],
            state.payload_bytes,
            list(state.unfinished.items()),
            state.names,
            [(tuple(card), _batch(template), body, life) for card, template, body, life in state.letters],
            (
                state.kept.next,
                [(number, client, _outcome(outcome), shift) for number, client, outcome, shift in state.kept.kept],
                state.kept.collected,
                state.kept.abandoned,
            ),
            (
                [
                    (client, at, [(_outcome(outcome), kept) for outcome, kept in items])
                    for client, at, items in state.mail.outboxes
                ],
                state.mail.followers,
            ),
            state.gone,
            state.retries,
            state.attempted,
            _encode_singles([entry.row() for entry in singles]),
        )
    )


def decode_snapshot(body: bytes | memoryview, segments: Mapping[int, SegmentInfo]) -> Snapshot:
    """What `encode_snapshot` wrote. `segments`: those of the log, by number."""
    value = plain.decode(body)
    if not isinstance(value, tuple) or len(value) != 18 or value[:2] != (VERSION, sys.byteorder):
        raise ValueError(f"no snapshot of version {VERSION} of a {sys.byteorder}-endian machine")
    _, _, covered, (uuid, epoch, time), ledger, routes, columns, again, nbytes, unfinished, names, letters = value[:12]
    (kept_next, kept, collected, abandoned), (outboxes, followers), gone, retries, attempted, singles = value[12:]
    entries, places = _load_entries(columns, segments)
    again_rows: list[AgainRow] = [
        (seq, _load_batch(template), own, key, life) for seq, template, own, key, life in again
    ]
    letter_rows: list[LetterRow] = [
        (DeadLetter(*card), _load_batch(template), own, life) for card, template, own, life in letters
    ]
    state = HandOver(
        uuid,
        epoch,
        time,
        0,
        dict(ledger),
        list(routes),
        entries,
        again_rows,
        nbytes,
        dict(unfinished),
        [(client, above, list(bases)) for client, above, bases in names],
        letter_rows,
        KeptRows(
            kept_next,
            [(number, client, Outcome(*outcome), shift) for number, client, outcome, shift in kept],
            list(collected),
            list(abandoned),
        ),
        MailRows(
            [
                (client, at, [(Outcome(*outcome), number) for outcome, number in items])
                for client, at, items in outboxes
            ],
            [(seq, [Address(*each) for each in addresses]) for seq, addresses in followers],
        ),
        list(gone),
        retries,
        attempted,
    )
    return Snapshot(covered, state, places, _load_singles(singles, segments))


def _outcome(outcome: Outcome) -> tuple[Any, ...]:
    return outcome[:_KEYS]


def _batch(batch: Batch) -> tuple[Any, ...]:
    """A batch without payload."""
    return tuple(batch._replace(body=b"", lengths=b"", ready_ats=b""))


def _load_batch(row: tuple[Any, ...]) -> Batch:
    return Batch(*row)


def _entries(entries: Sequence[DiskEntry]) -> tuple[Any, ...]:
    """Columns, then what the batches have in common, then the keys of those that have some."""
    columns = [array(code) for code in _COLUMNS]
    kinds: dict[tuple[Any, ...], int] = {}
    keys = []
    for entry in entries:
        batch, place = entry.batch, entry.place
        common = tuple(batch._replace(count=0, body=b"", lengths=b"", client=0, first=0, offset=0, keys=()))
        segno, pos, blen = (place.segment.segno, place.pos, place.blen) if place is not None else (_NOWHERE, 0, 0)
        row = (
            entry.base,
            batch.count,
            entry.put_at,
            entry.route,
            entry.live,
            entry.known,
            segno,
            pos,
            blen,
            batch.client,
            batch.first,
            batch.offset,
            len(batch.body) << 1 | bool(batch.lengths),
            kinds.setdefault(common, len(kinds)),
        )
        for column, value in zip(columns, row):
            column.append(value)
        if batch.keys:
            keys.append((entry.base, batch.keys))
    return [column.tobytes() for column in columns], list(kinds), keys


def _load_entries(value: Any, segments: Mapping[int, SegmentInfo]) -> tuple[list[EntryRow], dict[int, Place]]:
    packed, kinds, keys = value
    columns = [_column(code, data) for code, data in zip(_COLUMNS, packed)]
    commons = [Batch(*kind) for kind in kinds]
    keys_of = dict(keys)
    rows: list[EntryRow] = []
    places: dict[int, Place] = {}
    for base, count, put_at, route, live, known, segno, pos, blen, client, first, offset, body, kind in zip(*columns):
        batch = commons[kind]._replace(
            count=count, client=client, first=first, offset=offset, keys=keys_of.get(base, ())
        )
        if live:
            batch = slim(batch, body >> 1, 4 * count if body & 1 else 0)
        rows.append((base, batch, put_at, route, live, known))
        if segno in segments:
            places[base] = Place(segments[segno], pos, blen)
    return rows, places


def _encode_singles(rows: Sequence[SinglesRow]) -> tuple[Any, ...]:
    """Columns of the entries, what they have in common, positions and sizes of all, and where those are that moved."""
    columns = [array(code) for code in _SINGLES]
    commons: dict[tuple[Any, ...], int] = {}
    moved = []
    for row in rows:
        common = commons.setdefault(tuple(row.batch._replace(client=0, first=0)), len(commons))
        segnos = [_NOWHERE if info is None else info.segno for info in row.segments]
        values = (
            *(row.base, len(row.positions), row.live, row.known, row.put_at, row.route),
            *(row.batch.client, row.batch.first, row.held, row.extra, segnos[0], common),
        )
        for column, value in zip(columns, values):
            column.append(value)
        if len(segnos) > 1:
            moved.append((row.base, array("Q", segnos).tobytes()))
    return (
        [column.tobytes() for column in columns],
        list(commons),
        b"".join([row.positions.tobytes() for row in rows]),
        b"".join([row.sizes.tobytes() for row in rows]),
        moved,
    )


def _load_singles(value: Any, segments: Mapping[int, SegmentInfo]) -> list[SinglesRow]:
    packed, commons, positions, sizes, moved = value
    columns = [_column(code, data) for code, data in zip(_SINGLES, packed)]
    templates, elsewhere = [Batch(*common) for common in commons], dict(moved)
    rows: list[SinglesRow] = []
    at = 0
    for base, count, live, known, put_at, route, client, first, held, extra, segno, common in zip(*columns):
        end = at + 4 * count
        segnos = _column("Q", elsewhere[base]) if base in elsewhere else [segno]
        rows.append(
            SinglesRow(
                base,
                templates[common]._replace(client=client, first=first),
                *(put_at, route, live, known, held, extra),
                _column("I", positions[at:end]),
                _column("I", sizes[at:end]),
                [segments.get(number) for number in segnos],
            )
        )
        at = end
    if at != len(positions) or at != len(sizes):
        raise ValueError(f"{len(positions)} bytes of positions for {at // 4} messages")
    return rows


def _column(code: str, data: bytes) -> array[int]:
    column = array(code)
    column.frombytes(data)
    return column
