"""The table of moves, and what is compiled from it."""

import pytest

from daskqueue_core.states import (
    CANCELLING,
    REFUSED,
    TRANSITIONS,
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

COLUMNS = {*map(int, MessageState), CANCELLING}


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
    """From a finished state only a forget leads on, and GONE is left by a put of new numbers only."""
    ended = {MessageState.ACKED, MessageState.FAILED, MessageState.CANCELLED}
    for move, row in TRANSITIONS.items():
        for state in ended:
            assert isinstance(row[state], Refusal) or (move, row[state]) == (Move.FORGOTTEN, MessageState.GONE)
        assert isinstance(row[MessageState.GONE], Refusal) or move is Move.PUT


def test_good_news_from_anyone_bad_news_from_the_holder() -> None:
    """An ack takes what is unfinished; return, failure and agreement only what is delivered."""
    delivered = {int(MessageState.DELIVERED), CANCELLING}
    assert accepted(Move.ACKED_KEEP).members == {int(MessageState.READY), *delivered}
    for move in (Move.RETURNED, Move.FAILED, Move.CANCELLED):
        assert accepted(move).members == delivered


def test_a_cancelled_message_never_becomes_ready() -> None:
    """The one move back to READY ends what has CANCEL."""
    assert TRANSITIONS[Move.RETURNED][CANCELLING] == MessageState.CANCELLED
    assert all(row[CANCELLING] != MessageState.READY for row in TRANSITIONS.values())


def test_byte_is_state_and_flags() -> None:
    """Four bits each; CANCEL is a flag of DELIVERED, not a state."""
    assert (state_of(CANCELLING), flags_of(CANCELLING)) == (MessageState.DELIVERED, MessageFlag.CANCEL)
    assert flags_of(MessageState.READY) == MessageFlag(0)


def test_byte_class_finds_runs() -> None:
    """Runs of any of its bytes, also of those that mean something in a pattern."""
    found = [match.span() for match in ByteClass([2, 0x5D, 0x2D]).runs.finditer(b"\x00\x02\x5d\x00\x2d")]
    assert found == [(1, 3), (4, 5)]
