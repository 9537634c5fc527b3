"""The table of moves, and what is compiled from it."""

import pytest

from daskqueue_core.states import (
    ALL_BYTES,
    CANCELLING,
    HELD,
    REFUSED,
    TRANSITIONS,
    UNFINISHED,
    ByteClass,
    MessageFlag,
    MessageState,
    Move,
    Refusal,
    accepted,
    compiled,
    flags_of,
    state_of,
)

COLUMNS = set(ALL_BYTES)
READY, DELIVERED, SCHEDULED = MessageState.READY, MessageState.DELIVERED, MessageState.SCHEDULED
CANCEL, OVERDUE, SUSPECT = MessageFlag.CANCEL, MessageFlag.OVERDUE, MessageFlag.SUSPECT


def test_valid_bytes() -> None:
    """Seventeen: flags only where they mean something."""
    assert len(ALL_BYTES) == 17
    flags = {state: {byte & 0xF0 for byte in ALL_BYTES if state_of(byte) is state} for state in MessageState}
    assert flags[DELIVERED] == set(range(0, 0x80, 0x10))
    assert flags[READY] == flags[SCHEDULED] == {0, SUSPECT}
    assert all(flags[state] == {0} for state in MessageState if state not in (READY, SCHEDULED, DELIVERED))


@pytest.mark.parametrize("move", Move)
def test_every_cell_is_decided(move: Move) -> None:
    """Each move says something about each valid byte, and leads to valid bytes only."""
    row = TRANSITIONS[move]
    assert set(row) == COLUMNS
    assert {int(cell) for cell in row.values() if not isinstance(cell, Refusal)} <= COLUMNS


@pytest.mark.parametrize("move", Move)
def test_no_move_applies_to_its_own_result(move: Move) -> None:
    """So an event applied twice is always refused, and pages may collapse while a plan is written."""
    row = TRANSITIONS[move]
    results = [int(cell) for cell in row.values() if not isinstance(cell, Refusal)]
    assert all(isinstance(row[result], Refusal) for result in results)


@pytest.mark.parametrize("move", Move)
def test_compiled_table_is_the_row(move: Move) -> None:
    """256 bytes: the state after, or REFUSED, for every byte there is."""
    table = compiled(move)
    assert len(table) == 256
    for byte in range(256):
        cell = TRANSITIONS[move].get(byte, Refusal.ILLEGAL)
        assert table[byte] == (REFUSED if isinstance(cell, Refusal) else cell)


def test_what_has_ended_stays_ended() -> None:
    """Dead letters are requeued; all else that leads on from an end leads to GONE, which only a put leaves."""
    ended = {MessageState.ACKED, MessageState.FAILED, MessageState.CANCELLED, MessageState.EXPIRED}
    for move, row in TRANSITIONS.items():
        for state in ended:
            cell = row[state]
            assert (
                isinstance(cell, Refusal)
                or cell == MessageState.GONE
                or (move, state)
                == (
                    Move.REQUEUED,
                    MessageState.FAILED,
                )
            )
        assert isinstance(row[MessageState.GONE], Refusal) or move.name.startswith("PUT")


def test_good_news_from_anyone_bad_news_from_the_holder() -> None:
    """An ack takes what is unfinished; return, failure and agreement only what is delivered."""
    assert accepted(Move.ACKED_KEEP).members == UNFINISHED.members == accepted(Move.DAMAGED).members
    from_holder = [move for move in Move if move.name.startswith(("RETURNED", "RETRIED", "SUSPECTED"))]
    for move in (*from_holder, Move.FAILED, Move.CANCELLED, Move.EXPIRY_AGREED):
        assert accepted(move).members == HELD.members
    assert len(from_holder) == 6


def test_what_is_cancelled_or_overdue_never_runs_again() -> None:
    """Every return ends it; CANCEL wins."""
    for move, row in TRANSITIONS.items():
        for byte in HELD.members:
            after = row[byte]
            if byte & (CANCEL | OVERDUE) and not isinstance(after, Refusal):
                assert state_of(after) not in (READY, SCHEDULED)
            if move.name.startswith(("RETURNED", "RETRIED", "SUSPECTED")) and byte & (CANCEL | OVERDUE):
                assert after == (MessageState.CANCELLED if byte & CANCEL else MessageState.EXPIRED)


def test_suspicion() -> None:
    """Kept by a lease and by a return without blame, cleared by an exception, set by a crash, gone at any end."""
    ready, held = READY | SUSPECT, DELIVERED | SUSPECT
    assert TRANSITIONS[Move.DELIVERED][ready] == held
    assert TRANSITIONS[Move.DUE][SCHEDULED | SUSPECT] == ready
    assert [TRANSITIONS[move][held] for move in (Move.RETURNED, Move.RETRIED, Move.SUSPECTED)] == [ready, READY, ready]
    assert [TRANSITIONS[move][DELIVERED] for move in (Move.RETURNED, Move.SUSPECTED)] == [READY, ready]
    assert TRANSITIONS[Move.SUSPECTED_LATER][DELIVERED] == SCHEDULED | SUSPECT
    assert TRANSITIONS[Move.CANCEL_ASKED][held] == held | CANCEL
    assert TRANSITIONS[Move.EXPIRED][held | CANCEL] == held | CANCEL | OVERDUE


def test_byte_is_state_and_flags() -> None:
    """Four bits each; CANCEL is a flag of DELIVERED, not a state."""
    assert (state_of(CANCELLING), flags_of(CANCELLING)) == (MessageState.DELIVERED, MessageFlag.CANCEL)
    assert flags_of(MessageState.READY) == MessageFlag(0)


def test_byte_class_finds_runs() -> None:
    """Runs of any of its bytes, also of those that mean something in a pattern."""
    found = [match.span() for match in ByteClass([2, 0x5D, 0x2D]).runs.finditer(b"\x00\x02\x5d\x00\x2d")]
    assert found == [(1, 3), (4, 5)]
