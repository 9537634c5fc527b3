"""The states of a message, and the one table of their moves.

Rule 1: every legal move lives here. A cell of `TRANSITIONS` that holds no state is a move that does not exist.
Nothing here knows numbers, leases or time; `pages` applies the compiled tables to messages by the thousand.
docs/design/states.md is drawn from the table.

A message is one byte: the state in the low four bits, flags in the high four. 17 of the 256 bytes are valid.

State      who enters                         who leaves                      after a crash of the queue's host
SCHEDULED  a put for later, a delayed retry   time; late ack, cancel, expiry, SCHEDULED, for the same time
                                              purge, damage
READY      a put, time, a return, a requeue   a lease; late ack, cancel,      READY
                                              expiry, purge, damage
DELIVERED  a lease                            ack, return, fail, agreed       with the lease if that is known, else
                                              cancel or expiry, loss of the   READY
                                              owner, damage
ACKED      the first ack, outcome kept        forget                          ACKED, or redelivered, record lost
FAILED     out of attempts, rejected, crashed requeue, purge, a new put with  FAILED, with its attempts
           too often, damaged; early ack and  its key
           owner lost
CANCELLED  cancel of one not delivered;       forget, a new put with its key  CANCELLED, or pending again if the record
           agreed by the holder; came back                                    is lost
           with CANCEL
EXPIRED    time; agreed by the holder; came   forget, a new put with its key  EXPIRED, or expires again at once
           back with OVERDUE
GONE       ack without kept outcome, forget,  never: numbers are not reused   GONE: costs nothing
           purge, a new put with its key
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum, IntFlag
from typing import Final

__all__ = [
    "ALL_BYTES",
    "CANCELLING",
    "HELD",
    "HELD_SUSPECT",
    "READY_SUSPECT",
    "SUSPECT",
    "TRANSITIONS",
    "UNFINISHED",
    "ByteClass",
    "MessageFlag",
    "MessageState",
    "Move",
    "REFUSED",
    "Cell",
    "Refusal",
    "accepted",
    "bytes_of",
    "compiled",
    "flags_of",
    "state_of",
]


class MessageState(IntEnum):
    """Where a message is. The numbers are written to disk by stores: they never change."""

    GONE = 0
    SCHEDULED = 1
    READY = 2
    DELIVERED = 3
    ACKED = 4
    FAILED = 5
    CANCELLED = 6
    EXPIRED = 7


class MessageFlag(IntFlag):
    """What else is known of a message in its state."""

    SUSPECT = 0x10  # on SCHEDULED, READY, DELIVERED: it may have killed its worker, and is leased apart
    CANCEL = 0x20  # on DELIVERED: its consumer is asked to give it up; it never becomes READY again
    OVERDUE = 0x40  # on DELIVERED: it should have started before now; it never becomes READY again


class Move(Enum):
    """The rows of the table: an event, and its variant where the variants differ."""

    PUT = "put"
    PUT_LATER = "put, for later"
    PUT_SUSPECT = "put again as suspect"
    PUT_SUSPECT_LATER = "put again as suspect, for later"
    SUPERSEDED = "a new message has its key"
    SUPERSEDED_IN_REPLAY = "a new message has its key, in a replay"
    DUE = "its time has come"
    DELIVERED = "delivered"
    ACKED_KEEP = "acked, outcome kept"
    ACKED_DROP = "acked, outcome not kept"
    RETURNED = "returned without blame"
    RETURNED_LATER = "returned without blame, for later"
    RETRIED = "returned after a failed attempt"
    RETRIED_LATER = "returned after a failed attempt, for later"
    SUSPECTED = "returned as suspect"
    SUSPECTED_LATER = "returned as suspect, for later"
    FAILED = "failed, says the holder"
    DAMAGED = "its bytes are damaged"
    CANCEL_ASKED = "cancel asked"
    CANCELLED = "cancel agreed by the holder"
    EXPIRED = "expired"
    EXPIRY_AGREED = "expiry agreed by the holder"
    REQUEUED = "requeued"
    PURGED = "purged"
    FORGOTTEN = "forgotten"


class Refusal(Enum):
    """Why a cell has no state. Applying one raises `IllegalMove`; `decide_*` lets none through."""

    STALE = "too late: counted and answered as such"
    IGNORED = "nothing to do, not counted"
    ILLEGAL = "cannot be asked for"


Cell = int | Refusal

SUSPECT: Final = int(MessageFlag.SUSPECT)
CANCELLING: Final = int(MessageState.DELIVERED) | int(MessageFlag.CANCEL)
"""DELIVERED with CANCEL: a column of its own, since a return ends it."""
READY_SUSPECT: Final = int(MessageState.READY) | SUSPECT

_MAY_BE_SUSPECT: Final = (MessageState.SCHEDULED, MessageState.READY, MessageState.DELIVERED)


class _Suspicion(Enum):
    """What a move does to SUSPECT, where the state after it can have it."""

    KEPT = 0
    SET = 1
    CLEARED = 2


def _table() -> Mapping[Move, Mapping[int, Cell]]:
    S, R, D = MessageState.SCHEDULED, MessageState.READY, MessageState.DELIVERED  # noqa: N806
    A, F, C = MessageState.ACKED, MessageState.FAILED, MessageState.CANCELLED  # noqa: N806
    E, G = MessageState.EXPIRED, MessageState.GONE  # noqa: N806
    DC, DO = D | MessageFlag.CANCEL, D | MessageFlag.OVERDUE  # noqa: N806
    DCO = DC | DO  # noqa: N806
    late, o, x = Refusal.STALE, Refusal.IGNORED, Refusal.ILLEGAL
    kept, sets, clears = _Suspicion.KEPT, _Suspicion.SET, _Suspicion.CLEARED
    # fmt: off
    columns =                            (S,    R,    D,    DC,   DO,   DCO,  A,    F,    C,    E,    G)
    rows: dict[Move, tuple[_Suspicion, tuple[Cell, ...]]] = {
        Move.PUT:                 (kept, (x,    x,    x,    x,    x,    x,    x,    x,    x,    x,    R)),
        Move.PUT_LATER:           (kept, (x,    x,    x,    x,    x,    x,    x,    x,    x,    x,    S)),
        Move.PUT_SUSPECT:         (sets, (x,    x,    x,    x,    x,    x,    x,    x,    x,    x,    R)),
        Move.PUT_SUSPECT_LATER:   (sets, (x,    x,    x,    x,    x,    x,    x,    x,    x,    x,    S)),
        # One that is delivered and cancelled loses its key only. A recorded put proves that the older holder of its
        # key had ended badly, even if that record was lost.
        Move.SUPERSEDED:          (kept, (x,    x,    x,    o,    x,    o,    x,    G,    G,    G,    o)),
        Move.SUPERSEDED_IN_REPLAY: (kept, (G,   G,    G,    o,    G,    o,    G,    G,    G,    G,    o)),
        Move.DUE:                 (kept, (R,    x,    x,    x,    x,    x,    x,    x,    x,    x,    x)),
        # Time is not recorded, so a replayed lease may name messages that are still SCHEDULED.
        Move.DELIVERED:           (kept, (D,    D,    x,    x,    x,    x,    x,    x,    x,    x,    x)),
        Move.ACKED_KEEP:          (kept, (A,    A,    A,    A,    A,    A,    late, late, late, late, late)),
        Move.ACKED_DROP:          (kept, (G,    G,    G,    G,    G,    G,    late, late, late, late, late)),
        Move.RETURNED:            (kept, (late, late, R,    C,    E,    C,    late, late, late, late, late)),
        Move.RETURNED_LATER:      (kept, (late, late, S,    C,    E,    C,    late, late, late, late, late)),
        Move.RETRIED:             (clears, (late, late, R,  C,    E,    C,    late, late, late, late, late)),
        Move.RETRIED_LATER:       (clears, (late, late, S,  C,    E,    C,    late, late, late, late, late)),
        Move.SUSPECTED:           (sets, (late, late, R,    C,    E,    C,    late, late, late, late, late)),
        Move.SUSPECTED_LATER:     (sets, (late, late, S,    C,    E,    C,    late, late, late, late, late)),
        Move.FAILED:              (kept, (late, late, F,    F,    F,    F,    late, late, late, late, late)),
        Move.DAMAGED:             (kept, (F,    F,    F,    F,    F,    F,    o,    o,    o,    o,    o)),
        Move.CANCEL_ASKED:        (kept, (C,    C,    DC,   o,    DCO,  o,    o,    o,    o,    o,    o)),
        Move.CANCELLED:           (kept, (late, late, C,    C,    C,    C,    late, late, late, late, late)),
        Move.EXPIRED:             (kept, (E,    E,    DO,   DCO,  o,    o,    o,    o,    o,    o,    o)),
        Move.EXPIRY_AGREED:       (kept, (late, late, E,    E,    E,    E,    late, late, late, late, late)),
        Move.REQUEUED:            (kept, (o,    o,    o,    o,    o,    o,    o,    R,    o,    o,    o)),
        Move.PURGED:              (kept, (G,    G,    o,    o,    o,    o,    o,    G,    o,    o,    o)),
        Move.FORGOTTEN:           (kept, (o,    o,    o,    o,    o,    o,    G,    o,    G,    G,    o)),
    }
    # fmt: on
    table: dict[Move, dict[int, Cell]] = {}
    for move, (suspicion, cells) in rows.items():
        row = table[move] = {}
        for before, cell in zip(columns, cells):
            row[int(before)] = _suspicion(cell, suspicion is sets)
            if state_of(before) in _MAY_BE_SUSPECT:
                row[int(before) | SUSPECT] = _suspicion(cell, suspicion is not clears)
    return table


def _suspicion(cell: Cell, suspect: bool) -> Cell:
    if isinstance(cell, Refusal):
        return cell
    return int(cell) | SUSPECT if suspect and state_of(cell) in _MAY_BE_SUSPECT else int(cell)


def state_of(byte: int) -> MessageState:
    """The state in a message's byte."""
    return MessageState(byte & 0x0F)


def flags_of(byte: int) -> MessageFlag:
    """The flags in a message's byte."""
    return MessageFlag(byte & 0xF0)


TRANSITIONS: Final = _table()
"""`TRANSITIONS[move][byte before]`: the byte after, or why there is none."""

ALL_BYTES: Final = tuple(sorted(TRANSITIONS[Move.PUT]))
"""Every valid byte."""

REFUSED: Final = 0xFF
"""In a compiled table: no move. Not a valid byte."""


def compiled(move: Move) -> bytes:
    """`move` as a table for `bytes.translate`: the byte after, or REFUSED."""
    row = TRANSITIONS[move]
    cells = (row.get(before, Refusal.ILLEGAL) for before in range(256))
    return bytes(REFUSED if isinstance(cell, Refusal) else int(cell) for cell in cells)


class ByteClass:
    """Some of the bytes a message can be: to find the runs of messages that are one of them."""

    __slots__ = ("members", "runs")

    def __init__(self, members: Iterable[int]) -> None:
        self.members = frozenset(int(member) for member in members)
        self.runs = re.compile(b"[" + b"".join(b"\\x%02x" % member for member in sorted(self.members)) + b"]+")


def accepted(move: Move) -> ByteClass:
    """The bytes `move` applies to."""
    return ByteClass(before for before, cell in TRANSITIONS[move].items() if not isinstance(cell, Refusal))


def bytes_of(*states: MessageState) -> ByteClass:
    """The bytes of messages in `states`, whatever their flags."""
    return ByteClass(byte for byte in ALL_BYTES if state_of(byte) in states)


HELD: Final = bytes_of(MessageState.DELIVERED)
"""Somebody has it."""

HELD_SUSPECT: Final = ByteClass(byte for byte in HELD.members if byte & SUSPECT)
"""Somebody has it who may die of it."""

UNFINISHED: Final = bytes_of(MessageState.SCHEDULED, MessageState.READY, MessageState.DELIVERED)
"""It will still end."""
