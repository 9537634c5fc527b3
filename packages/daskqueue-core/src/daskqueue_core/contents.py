"""Everything a queue holds, and the one door by which it changes.

`QueueContents` keeps what goes with the ledger in step with it: payloads, names, routes, dead letters, outcomes. Every
event passes through `_happen`, with what *rides* along (the batches of a put, the values of a report, the failures of
messages): it is recorded, then taken. `_record` is where a durable queue writes both down, and `_take` alone, over what
was written, builds the same contents again: so taking an event never causes another.

What is no event is memory only: followers, acknowledged outcomes, exceptions dropped for want of room.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from daskqueue_core.batch import Batch, Buffer, Keep, Run
from daskqueue_core.dead_letters import DeadLetter, DeadLetters, Letter
from daskqueue_core.events import (
    Acked,
    Blame,
    CancelAsked,
    Cancelled,
    Delivered,
    Event,
    Expired,
    Failed,
    Forgotten,
    Purged,
    Put,
    Reason,
    Requeued,
    Returned,
)
from daskqueue_core.ledger import Ledger
from daskqueue_core.mail import Address, Mail
from daskqueue_core.names import Names, TaskName
from daskqueue_core.outcomes import End, ErrorBlob, Failure, FailureReason, KeptResults, Outcome, Report
from daskqueue_core.payloads import Entry, Payloads
from daskqueue_core.routes import Routes
from daskqueue_core.runs import clean, total
from daskqueue_core.states import MessageState

__all__ = ["QueueContents", "Ride"]

Ride = Sequence[Batch] | Report | Mapping[int, Failure] | None
"""With Put the batches, with Acked the report, with Failed and a Returned that counts an attempt the failures."""

_NONE: Final = int(Keep.NONE)
_ONE_MORE: Final = bytes([*range(1, 256), 255])
_CANCELLED: Final = MessageState.CANCELLED
_EXPIRED: Final = MessageState.EXPIRED


class QueueContents:
    """Ledger, payloads, names, routes, dead letters and mail of one queue."""

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        uuid: str,
        epoch: int,
        result_ttl: int | None,
        result_max_bytes: int | None,
    ) -> None:
        self.uuid = uuid
        self.epoch = epoch
        self._clock = clock
        self._ledger = Ledger(epoch=epoch)
        self._payloads = Payloads()
        self._names = Names()
        self._routes = Routes()
        self._letters = DeadLetters()
        self._kept = KeptResults(ttl=result_ttl, max_bytes=result_max_bytes)
        self._mail = Mail(f"{uuid}:{epoch}", self._kept, clock)
        self._gone: dict[str, None] = {}  # owners that were lost last, in order
        self._retries = 0
        self._attempted = False
        """Whether any message may have failed before: most queues never need to look."""
        self._most = result_max_bytes if result_max_bytes is not None else sys.maxsize

    # -- the door

    def _happen(self, event: Event, ride: Ride = None) -> tuple[Run, ...]:
        """The one way anything changes. Returns the messages that ended by it without a report.

        What comes with every message does the same in fewer calls, where nothing ends by it or nobody hears of it:
        `_put_local`, `_lease` and `_ack_all` record their event and take it.
        """
        self._record(event, ride)
        ended = _TAKES[event.__class__](self, event, ride)
        if self._kept.nbytes + self._letters.nbytes > self._most:
            self._make_room()
        return ended

    def _record(self, event: Event, ride: Ride) -> None:
        """Make `event` survive, before it is taken; if this raises, nothing has happened. In memory nothing does."""

    def _commit(self, event: Put) -> None:
        """A put was taken: its messages may be leased as soon as it is as durable as was asked for, here at once."""
        self._ledger.commit(event.base + event.count)

    def _take(self, event: Event, ride: Ride) -> tuple[Run, ...]:
        """Let `event` happen to everything the queue holds."""
        return _TAKES[event.__class__](self, event, ride)

    def _make_room(self) -> None:
        """Too many bytes of results and exceptions. Exceptions go first: they leave a text."""
        self._letters.shrink(self._kept.nbytes + self._letters.nbytes - self._most)
        self._expire_kept()

    def _expire_kept(self) -> None:
        """Let go of kept results that are over their time or too much."""
        runs = self._kept.expire(self._clock())
        event = self._ledger.decide_forget(runs, self._clock()) if runs else None
        if event is not None:
            self._happen(event)

    # -- taking events

    def _take_put(self, event: Put, batches: Sequence[Batch]) -> tuple[Run, ...]:
        if event.keys:
            self._take_keyed(event, batches)
        else:
            self._ledger.apply_put(event)
            self._add(event, batches)
        return ()

    def _add(self, event: Put, batches: Sequence[Batch]) -> None:
        base, time, route = event.base, event.time, event.route
        for batch in batches:
            entry = self._payloads.add(base, batch, time, route)
            if batch.keep != _NONE:
                self._names.add(entry)
            base += batch.count

    def _take_keyed(self, event: Put, batches: Sequence[Batch]) -> None:
        """A put of messages with keys: the older holders of these go."""
        holders = [seq for seq in map(self._ledger.find_key, event.keys) if seq is not None]
        unfinished = [
            seq for seq in holders if self._ledger.state(seq) in _UNFINISHED
        ]  # in a replay that lost their end
        self._ledger.apply_put(event)
        self._add(event, batches)
        for seq in holders:
            if self._ledger.state(seq) is MessageState.GONE:
                if seq in unfinished:
                    self._end([(seq, seq + 1)], End.CANCELLED, gone=True)
                else:
                    self._forget_gone(seq)

    def _take_delivered(self, event: Delivered, ride: None) -> tuple[Run, ...]:
        return self._ledger.apply_delivered(event)

    def _take_acked(self, event: Acked, report: Report | None) -> tuple[Run, ...]:
        told = [(entry, runs, self._attempts(runs)) for entry, runs in self._payloads.by_entry(event.runs)]
        self._ledger.apply_acked(event)
        for entry, runs, attempts in told:
            if report is not None and report.values:
                self._tell(entry, runs, (report.start, report.stop), report.values, attempts=attempts)
            else:
                self._tell(entry, runs, attempts=attempts)
        self._free(event.runs, gone=not event.keep)
        return ()

    def _take_returned(self, event: Returned, ride: Ride) -> tuple[Run, ...]:
        ended = self._ledger.apply(event)
        if event.blame is Blame.ATTEMPT:
            self._attempted = True
            self._retries += total(event.runs) - total(ended)
        if ended:
            seqs = [seq for start, stop in ended for seq in range(start, stop)]
            for state, end in ((_CANCELLED, End.CANCELLED), (_EXPIRED, End.EXPIRED)):
                self._end([(seq, seq + 1) for seq in seqs if self._ledger.state(seq) is state], end)
        return ended

    def _take_end(self, event: CancelAsked | Cancelled | Expired, ride: None) -> tuple[Run, ...]:
        ended = self._ledger.apply(event)
        self._end(ended, End.EXPIRED if isinstance(event, Expired) else End.CANCELLED)
        return ended

    def _take_failed(self, event: Failed, failures: Mapping[int, Failure] | None) -> tuple[Run, ...]:
        holder = self._ledger.lease(event.lease)
        owner = holder.owner if holder is not None else ""
        dead: list[tuple[Entry, tuple[Run, ...], bytes, list[Letter]]] = []
        for entry, runs in self._payloads.by_entry(tuple(clean(event.runs))):
            letters = [
                self._letter(entry, seq, event, owner, failures.get(seq) if failures else None)
                for start, stop in runs
                for seq in range(start, stop)
            ]
            dead.append((entry, runs, self._attempts(runs), letters))
        self._ledger.apply(event)
        for entry, runs, attempts, letters in dead:
            start = runs[0][0]
            if failures is None:
                self._tell(entry, runs, end=End.CRASHED, attempts=attempts)
            else:
                errors = tuple((each.card.seq - start, each.card.blob, each.card.text) for each in letters)
                self._tell(entry, runs, errors=errors, attempts=attempts)
            for letter in letters:
                self._letters.add(letter)
                self._payloads.bury(entry, letter.card.seq, letter.body)
        return ()

    def _take_requeued(self, event: Requeued, ride: None) -> tuple[Run, ...]:
        self._ledger.apply(event)
        for start, stop in event.runs:
            for seq in range(start, stop):
                letter = self._letters.pop(seq)
                self._forget_kept(self._payloads.entry(seq), seq, seq + 1)
                key = self._ledger.key_of(seq)
                self._payloads.requeue(seq, letter.template, letter.body, key, letter.life + 1)
        return ()

    def _take_purged(self, event: Purged, ride: None) -> tuple[Run, ...]:
        self._ledger.apply(event)
        dead = set(self._letters.within(event.runs))
        for seq in dead:
            self._forget_gone(seq)
        alive = clean(event.runs) if not dead else _without(event.runs, dead)
        self._end(alive, End.CANCELLED, gone=True)
        return tuple(alive)

    def _take_forgotten(self, event: Forgotten, ride: None) -> tuple[Run, ...]:
        self._ledger.apply(event)
        for entry, start, stop in self._payloads.pieces(event.runs):
            if entry is not None:
                self._forget_kept(entry, start, stop)
        self._over(self._payloads.forget(event.runs))
        return ()

    # -- what follows

    def _end(self, runs: Sequence[Run], end: End, *, gone: bool = False) -> None:
        """These messages ended otherwise than by a report."""
        if not runs:
            return
        for entry, of_entry in self._payloads.by_entry(tuple(clean(runs))):
            self._tell(entry, of_entry, end=end)
        self._free(runs, gone=gone)

    def _tell(
        self,
        entry: Entry,
        runs: tuple[Run, ...],
        span: Run | None = None,
        values: Buffer = b"",
        errors: tuple[ErrorBlob, ...] = (),
        end: End = End.RUN,
        attempts: bytes = b"",
    ) -> None:
        """Tell who waits for them that `runs` of `entry` ended; `values` are those of the messages in `span`."""
        if entry.batch.keep == Keep.NONE and not self._mail.followers:
            return
        origin = entry.origin
        start, stop = span if span is not None else (runs[0][0], runs[-1][1])
        if attempts:
            attempts = (b"\1" * (runs[0][0] - start) + attempts).ljust(stop - start, b"\1")
        accepted = () if runs == ((start, stop),) else tuple((lo - start, hi - start) for lo, hi in runs)
        outcome = Outcome(
            origin.batch.first, start - origin.base, stop - start, accepted, values, errors, end, attempts, entry.life
        )
        self._mail.deliver(origin, runs, outcome)

    def _attempts(self, runs: tuple[Run, ...]) -> bytes:
        """How many attempts each message between the first and the last of `runs` will have had with this one."""
        if not self._attempted:
            return b""
        return self._ledger.attempts_of(runs[0][0], runs[-1][1]).translate(_ONE_MORE)

    def _letter(self, entry: Entry, seq: int, event: Failed, owner: str, failure: Failure | None) -> Letter:
        batch, origin = entry.batch, entry.origin
        crashes = self._ledger.crashes(seq) + (event.reason is Reason.CRASHED)
        attempts = self._ledger.attempts(seq)
        reason, blob, end = event.reason.value, b"", End.CRASHED
        if failure is None:
            body = entry.single(seq)
            text = f"{owner or 'its owner'} was lost while it may have run this ({reason}, crashes: {crashes})"
        else:
            attempts, blob, text, end = attempts + 1, bytes(failure.blob), failure.text, End.RUN
            body = bytes(failure.body) or entry.single(seq)
            damaged = event.reason is Reason.DAMAGED
            reason = event.reason.value if damaged else FailureReason(failure.reason).name.lower()
        client, number = (0, seq) if batch.keep == Keep.NONE else (batch.client, batch.first + seq - entry.base)
        key = self._ledger.key_of(seq)
        card = DeadLetter(
            seq,
            client,
            number,
            key,
            text,
            blob,
            attempts,
            crashes,
            reason,
            owner,
            origin.put_time(seq),
            event.time,
            end,
        )
        return Letter(card, entry.template(), body, entry.life)

    def _free(self, runs: Sequence[Run], *, gone: bool) -> None:
        self._over(self._payloads.free(runs, gone=gone))

    def _over(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.batch.keep != _NONE:  # else it never had a name
                self._names.drop(entry)

    def _forget_gone(self, seq: int) -> None:
        """A message that had ended is gone: nobody can ask for it any more."""
        entry = self._payloads.find(seq)
        if entry is not None:
            self._forget_kept(entry, seq, seq + 1)
        if self._letters.get(seq) is not None:
            self._over(self._payloads.exhume(seq, self._letters.pop(seq).body))
        else:
            self._over(self._payloads.forget([(seq, seq + 1)]))

    def _forget_kept(self, entry: Entry, start: int, stop: int) -> None:
        origin = entry.origin
        if origin.batch.keep == Keep.KEEP:
            batch, base = origin.batch, origin.base
            self._kept.forget(batch.client, batch.first, start - base, stop - base)

    # -- names

    def _seq(self, name: TaskName) -> int | None:
        """The message that a task's name means, if anything of it is known."""
        if isinstance(name, str):
            return self._ledger.find_key(name)
        client, number = name
        if client == 0:
            return number if 0 <= number < self._ledger.puts else None
        return self._names.find(client, number)

    def _seqs(self, names: Sequence[TaskName]) -> dict[int, TaskName]:
        """The messages of `names`, without those that mean nothing."""
        found = ((self._seq(name), name) for name in names)
        return {seq: name for seq, name in found if seq is not None}

    def _follow(self, seq: int, follower: Address) -> bool:
        """Let `follower` hear how message `seq` ends, or ended. False: nobody knows any more."""
        if self._ledger.state(seq) in _UNFINISHED:
            self._mail.follow(seq, follower)
            return True
        letter = self._letters.get(seq)
        if letter is not None:
            self._mail.send(follower, letter.outcome(), 0)
            return True
        entry = self._payloads.find(seq)
        if entry is None or entry.batch.keep != Keep.KEEP:
            return False
        batch, base = entry.origin.batch, entry.origin.base
        outcome = self._kept.find(batch.client, batch.first, seq - base)
        if outcome is None:
            return False
        self._mail.send(follower, outcome, seq - base - outcome.index)
        return True

    # -- checking

    def validate(self) -> None:
        """AssertionError if what the queue holds does not fit what its ledger says. Looks at every message."""
        ledger = self._ledger
        ledger.validate()
        alive = {seq for state in _UNFINISHED for start, stop in ledger.runs_in(state) for seq in range(start, stop)}
        self._payloads.validate(alive.__contains__, self._letters)
        assert sum(self._payloads.unfinished.values()) == len(alive)
        dead = [seq for start, stop in ledger.runs_in(MessageState.FAILED) for seq in range(start, stop)]
        assert dead == [letter.seq for letter in self._letters.read(0, None)]
        self._letters.validate()


_TAKES: Final[dict[type, Callable[[QueueContents, Any, Any], tuple[Run, ...]]]] = {
    Put: QueueContents._take_put,
    Delivered: QueueContents._take_delivered,
    Acked: QueueContents._take_acked,
    Returned: QueueContents._take_returned,
    Failed: QueueContents._take_failed,
    CancelAsked: QueueContents._take_end,
    Cancelled: QueueContents._take_end,
    Expired: QueueContents._take_end,
    Requeued: QueueContents._take_requeued,
    Purged: QueueContents._take_purged,
    Forgotten: QueueContents._take_forgotten,
}

_UNFINISHED: Final = (MessageState.READY, MessageState.DELIVERED, MessageState.SCHEDULED)


def _without(runs: Sequence[Run], holes: set[int]) -> list[Run]:
    return clean([(seq, seq + 1) for start, stop in runs for seq in range(start, stop) if seq not in holes])
