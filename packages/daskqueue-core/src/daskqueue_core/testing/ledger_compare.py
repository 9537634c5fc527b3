"""Whether a ledger is what its model says: everything that can be seen, after `validate()`.

`compare_lasting` is what events determine, so it also judges a ledger made by recovery (not `live`); `compare` is all.
"""

from __future__ import annotations

from collections.abc import Iterable

from daskqueue_core.ledger import Ledger
from daskqueue_core.states import MessageFlag, MessageState
from daskqueue_core.testing.ledger_pair import LedgerPair, numbers
from daskqueue_core.testing.model import ModelLedger

__all__ = ["compare", "compare_lasting"]


def compare(pair: LedgerPair) -> None:
    """Everything that can be seen is as the model has it."""
    ledger, model = pair.ledger, pair.model
    compare_lasting(pair.model, ledger)
    assert (ledger.committed, ledger.stale, ledger.dropped) == (model.committed, model.stale, 0)
    assert {owner: ledger.deadline(owner) for owner in ledger.owners()} == model.deadlines
    next_at, expected = ledger.next_at(), model.next_at()
    assert expected is None or (next_at is not None and next_at <= expected)  # what ended meanwhile may wake it
    for lease, entry in model.leases.items():
        seen = ledger.lease(lease)
        assert seen is not None
        started = len(entry.granted) if entry.started is None else entry.started
        assert (seen.finished, seen.started) == (entry.finished, started)
        if entry.request:
            assert ledger.find_grant(entry.owner, entry.request) is seen
        if any(model.messages[seq].suspect for seq in model.held(lease)):
            first = entry.granted[0]
            assert entry.granted == list(range(first, first + len(entry.granted))), "suspects with others"
    for owner in ("a", "b", "c"):
        held = {lease: [(seq, model.messages[seq]) for seq in model.held(lease)] for lease in model.of(owner)}
        asked = {lease: [seq for seq, message in seqs if message.cancel] for lease, seqs in held.items()}
        late = {
            lease: [seq for seq, message in seqs if message.overdue and not message.cancel]
            for lease, seqs in held.items()
        }
        for seen_runs, wanted in ((ledger.cancels(owner), asked), (ledger.overdue(owner), late)):
            told = {lease: numbers(runs) for lease, runs in seen_runs.items()}
            assert told == {lease: seqs for lease, seqs in wanted.items() if seqs}


def compare_lasting(model: ModelLedger, ledger: Ledger, *, live: bool = True) -> None:
    """What events determine is as the model has it."""
    ledger.validate()
    messages = model.messages
    states = [message.state for message in messages]
    assert ledger.puts == len(states)
    everything = range(len(states))
    assert [ledger.state(seq) for seq in everything] == states
    flags = [
        (MessageFlag.SUSPECT if message.suspect else MessageFlag(0))
        | (MessageFlag.CANCEL if message.cancel else MessageFlag(0))
        | (MessageFlag.OVERDUE if message.overdue else MessageFlag(0))
        for message in messages
    ]
    assert [ledger.flags(seq) for seq in everything] == flags
    assert [ledger.crashes(seq) for seq in everything] == [message.crashes for message in messages]
    assert [ledger.key_of(seq) for seq in everything] == [message.key for message in messages]
    attempts = [message.attempts for message in messages]
    shown = ledger.attempts_of(0, len(states)) or bytes(len(states))
    for seq in everything:
        if states[seq] is not MessageState.GONE:
            assert ledger.attempts(seq) == shown[seq] == attempts[seq]
    for seq, message in enumerate(messages):
        if message.key is not None:
            assert ledger.find_key(message.key) == seq
            assert ledger.is_blocked(message.key) == message.blocks_key
            assert ledger.is_taken(message.key) == (message.unfinished or message.state is MessageState.ACKED)
    assert ledger.counts() == {state: states.count(state) for state in MessageState}
    assert ledger.ready == states.count(MessageState.READY)
    assert ledger.unfinished == sum(message.unfinished for message in messages)
    assert ledger.finished == ledger.puts - ledger.unfinished
    for state in MessageState:
        assert numbers(ledger.runs_in(state)) == [seq for seq, other in enumerate(states) if other is state]
    _compare_times(model, ledger, live=live)
    _compare_leases(model, ledger)


def _compare_times(model: ModelLedger, ledger: Ledger, *, live: bool) -> None:
    waiting = _times(ledger.waiting.runs())
    expiring = _times(ledger.expiring.runs())
    for seq in numbers(ledger.overdue_runs):
        expiring.setdefault(seq, set()).add(-1)
    for seq, message in enumerate(model.messages):
        if message.state is MessageState.SCHEDULED:
            assert min(waiting[seq]) == message.ready_at
        if not message.unfinished and message.state is not MessageState.FAILED:
            continue
        if message.expires_at:
            assert message.expires_at in expiring[seq] or (not live and -1 in expiring[seq])
        elif not message.overdue and (live or not message.unsure):
            assert not expiring.get(seq)


def _compare_leases(model: ModelLedger, ledger: Ledger) -> None:
    assert set(ledger.owners()) == {entry.owner for entry in model.leases.values()}
    for owner in ledger.owners():
        assert [lease.id for lease in ledger.leases_of(owner)] == model.of(owner)
    for lease, entry in model.leases.items():
        seen = ledger.lease(lease)
        assert seen is not None
        assert (seen.id, seen.owner, seen.once, seen.request) == (lease, entry.owner, entry.once, entry.request)
        assert numbers(seen.granted) == entry.granted
        assert sorted(numbers(ledger.held(lease))) == model.held(lease)
        assert seen.left == len(model.held(lease))


def _times(runs: Iterable[tuple[int, int, int]]) -> dict[int, set[int]]:
    times: dict[int, set[int]] = {}
    for time, start, stop in runs:
        for seq in range(start, stop):
            times.setdefault(seq, set()).add(time)
    return times
