"""The states of a message, and the one table of their moves.

Rule 1: every legal move lives here. A cell of `TRANSITIONS` that holds no state is a move that does not exist.
Nothing here knows numbers, leases or time; `pages` applies the compiled tables to messages by the thousand.

A message is one byte: the state in the low four bits, flags in the high four.

State      who enters                         who leaves                      after a crash of the queue's host
READY      a put, a return                    a lease, late ack, cancel       READY
DELIVERED  a lease                            ack, return, fail, agreed       with the lease if that is known,
                                              cancel, loss of the owner       else READY
ACKED      the first ack, outcome kept        forget                          ACKED, or redelivered, record lost
FAILED     rejected; early ack, owner lost    (a later issue: requeue, purge) FAILED
CANCELLED  cancel of a ready one; agreed by   forget                          CANCELLED, or pending again if the record
           the holder; came back with CANCEL                                  is lost
GONE       ack without kept outcome, forget   never: numbers are not reused   GONE: costs nothing
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum, IntFlag
from typing import Final

__all__ = [
    "CANCELLING",
    "TRANSITIONS",
    "ByteClass",
    "MessageFlag",
    "MessageState",
    "Move",
    "REFUSED",
    "Cell",
    "Refusal",
    "accepted",
    "compiled",
    "flags_of",
    "state_of",
]


class MessageState(IntEnum):
    """Where a message is. The numbers are written to disk by stores: they never change."""

    GONE = 0
    # 1: SCHEDULED, waits for its time
    READY = 2
    DELIVERED = 3
    ACKED = 4
    FAILED = 5
    CANCELLED = 6
    # 7: EXPIRED, its time passed before it was delivered


class MessageFlag(IntFlag):
    """What else is known of a message in its state."""

    # 0x10: SUSPECT, may have killed its worker
    CANCEL = 0x20  # on DELIVERED: its consumer is asked to give it up; it never becomes READY again
    # 0x40: OVERDUE, expired while delivered


class Move(Enum):
    """The rows of the table: an event, and its variant where the variants differ."""

    PUT = "put"
    DELIVERED = "delivered"
    ACKED_KEEP = "acked, outcome kept"
    ACKED_DROP = "acked, outcome not kept"
    RETURNED = "returned by the holder"
    FAILED = "failed by the holder"
    CANCEL_ASKED = "cancel asked"
    CANCELLED = "cancel agreed by the holder"
    FORGOTTEN = "forgotten"


class Refusal(Enum):
    """Why a cell has no state. Applying one raises `IllegalMove`; `decide_*` lets none through."""

    STALE = "too late: counted and answered as such"
    IGNORED = "nothing to do, not counted"
    ILLEGAL = "cannot be asked for"


Cell = int | Refusal

CANCELLING: Final = int(MessageState.DELIVERED) | int(MessageFlag.CANCEL)
"""DELIVERED with CANCEL: a column of its own, since a return ends it."""


def _table() -> Mapping[Move, Mapping[int, Cell]]:
    GONE, READY, DELIVERED = MessageState.GONE, MessageState.READY, MessageState.DELIVERED  # noqa: N806
    ACKED, FAILED, CANCELLED = MessageState.ACKED, MessageState.FAILED, MessageState.CANCELLED  # noqa: N806
    stale, o, x = Refusal.STALE, Refusal.IGNORED, Refusal.ILLEGAL
    # fmt: off
    columns =           (READY,     DELIVERED,  CANCELLING, ACKED, FAILED, CANCELLED, GONE)
    rows: dict[Move, tuple[Cell, ...]] = {
        Move.PUT:          (x,         x,          x,          x,     x,      x,         READY),
        Move.DELIVERED:    (DELIVERED, x,          x,          x,     x,      x,         x),
        Move.ACKED_KEEP:   (ACKED,     ACKED,      ACKED,      stale, stale,  stale,     stale),
        Move.ACKED_DROP:   (GONE,      GONE,       GONE,       stale, stale,  stale,     stale),
        Move.RETURNED:     (stale,     READY,      CANCELLED,  stale, stale,  stale,     stale),
        Move.FAILED:       (stale,     FAILED,     FAILED,     stale, stale,  stale,     stale),
        Move.CANCEL_ASKED: (CANCELLED, CANCELLING, o,          o,     o,      o,         o),
        Move.CANCELLED:    (stale,     CANCELLED,  CANCELLED,  stale, stale,  stale,     stale),
        Move.FORGOTTEN:    (o,         o,          o,          GONE,  o,      GONE,      o),
    }
    # fmt: on
    return {move: {int(before): cell for before, cell in zip(columns, row)} for move, row in rows.items()}


TRANSITIONS: Final = _table()
"""`TRANSITIONS[move][byte before]`: the byte after, or why there is none."""

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


def state_of(byte: int) -> MessageState:
    """The state in a message's byte."""
    return MessageState(byte & 0x0F)


def flags_of(byte: int) -> MessageFlag:
    """The flags in a message's byte."""
    return MessageFlag(byte & 0xF0)
