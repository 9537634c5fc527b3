"""What operators do to a queue: cancel, forget, requeue, purge, by numbers or by the names of tasks; and what it says.

Tasks that nobody knows are left out of a request, never an error: they may have ended and been forgotten meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from daskqueue_core.batch import Kind, Run, merge_runs
from daskqueue_core.contents import QueueContents, Ride
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.events import Event, Put
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Outcome
from daskqueue_core.protocols import REPLY_BYTES
from daskqueue_core.runs import intersection
from daskqueue_core.states import MessageState
from daskqueue_core.stats import QueueDepth, QueueStats

__all__ = ["QueueAdministration", "as_runs"]

_PURGED: Final = (MessageState.FAILED, MessageState.READY, MessageState.SCHEDULED)
_FORGOTTEN: Final = (MessageState.ACKED, MessageState.CANCELLED, MessageState.EXPIRED)


class QueueAdministration(QueueContents):
    """The operator's side of a queue."""

    # -- cancel

    def cancel(self, runs: Sequence[Run]) -> int:
        """End what is not delivered; ask the owners of what is. Returns how many it concerned."""
        return self._apply(self._ledger.decide_cancel(runs, self._clock()))

    def cancel_tasks(self, client: int, tasks: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Cancel `(batch's first number, from index, to index)` of a client. Returns those that have ended by it.

        What is delivered is flagged: its owner hears of it and gives it up if it has not begun. What is somebody
        else's under a key stays: this client only does not wait for it any more.
        """
        ended: list[tuple[int, int, int]] = []
        for first, lo, hi in tasks:
            lo = max(lo, 0)
            named = []  # with the first index of each, since what has ended may have no name any more
            for start, stop in self._names.runs(client, first + lo, first + hi):
                origin = self._payloads.entry(start).origin
                named.append((start, stop, start - origin.base + origin.batch.first - first))
            event = self._ledger.decide_cancel([(start, stop) for start, stop, _ in named], self._clock())
            gone = [] if event is None else list(self._happen(event))
            for start, stop, index in named:
                for low, high in intersection(gone, [(start, stop)]):
                    ended.append((first, low - start + index, high - start + index))
            if self._mail.followers:
                ended += self._mail.unfollow(client, first, lo, hi)
        return ended

    def cancel_named(self, names: Sequence[TaskName]) -> list[TaskName]:
        """Cancel tasks by name, whoever submitted them. Returns those that have ended by it."""
        seqs = self._seqs(names)
        event = self._ledger.decide_cancel(as_runs(sorted(seqs)), self._clock())
        ended = () if event is None else self._happen(event)
        return [seqs[seq] for start, stop in ended for seq in range(start, stop)]

    # -- results

    def forget(self, runs: Sequence[Run]) -> int:
        """Drop kept successes, cancelled and expired messages. Returns how many.

        The bytes of a result are free when all the messages it covers are forgotten.
        """
        return self._apply(self._ledger.decide_forget(runs, self._clock()))

    def forget_tasks(self, names: Sequence[TaskName]) -> int:
        """As `forget`, by name."""
        return self.forget(as_runs(sorted(self._seqs(names))))

    def read_kept(self, after: int = 0, limit_bytes: int = REPLY_BYTES) -> tuple[int, list[tuple[int, Outcome]]]:
        """`(client, outcome)` of kept results, with their explicit keys; the number to go on with, -1 at the end."""
        after, outcomes = self._kept.read(after, limit_bytes)
        if self._ledger.keys.key_of:
            outcomes = [(client, self._named(client, outcome)) for client, outcome in outcomes]
        return after, outcomes

    def _named(self, client: int, outcome: Outcome) -> Outcome:
        first, key_of = outcome.first + outcome.index, self._ledger.keys.key_of
        seqs = [self._names.find(client, first + index) for index in range(outcome.count)]
        keys = tuple([key_of.get(seq, "") if seq is not None else "" for seq in seqs])
        return outcome._replace(keys=keys) if any(keys) else outcome

    # -- dead letters

    def dead_letters(self, after: int = 0, limit: int | None = None) -> list[DeadLetter]:
        """Messages that failed for good, at most `limit`, from number `after` on."""
        return self._letters.read(after, limit)

    def requeue(self, names: Sequence[TaskName] | None = None) -> int:
        """Run dead letters (default: all) again, in a new life: without attempts or crashes. Returns how many."""
        return self._apply(self._ledger.decide_requeue(self._in(MessageState.FAILED, names), self._clock()))

    def purge(self, state: MessageState | int, names: Sequence[TaskName] | None = None) -> int:
        """Drop all messages in `state`, or those of `names`. Returns how many.

        Unfinished ones end as cancelled, kept results are forgotten. Delivered ones are their owners': cancel them.
        """
        state = MessageState(state)
        runs = self._in(state, names)
        if state in _PURGED:
            return self._apply(self._ledger.decide_purge(runs, self._clock()))
        if state in _FORGOTTEN:
            return self.forget(runs)
        raise ValueError(f"queue {self.uuid}: messages that are {state.name} cannot be purged; cancel them")

    def _in(self, state: MessageState, names: Sequence[TaskName] | None) -> list[Run]:
        if names is None:
            return self._ledger.runs_in(state)
        return as_runs(sorted(seq for seq in self._seqs(names) if self._ledger.state(seq) is state))

    # -- counts

    @property
    def ready(self) -> int:
        """Messages that could be leased."""
        return self._ledger.ready

    @property
    def puts(self) -> int:
        """Messages ever admitted."""
        return self._ledger.puts - self._ledger.pages.skipped

    @property
    def unfinished(self) -> int:
        """Messages without an outcome."""
        return self._ledger.unfinished

    def unfinished_of(self, kinds: Collection[int]) -> int:
        """Messages of these kinds without an outcome."""
        unfinished = self._payloads.unfinished
        return sum([unfinished.get(route, 0) for route in self._routes.of_kinds(kinds)])

    def stats(self) -> QueueStats:
        """Counts."""
        ledger, counts = self._ledger, self._ledger.counts()
        return QueueStats(
            uuid=self.uuid,
            puts=self.puts,
            ready=counts[MessageState.READY],
            delivered=counts[MessageState.DELIVERED],
            acked=counts[MessageState.ACKED],
            failed=counts[MessageState.FAILED],
            cancelled=counts[MessageState.CANCELLED],
            finished=ledger.finished,
            stale=ledger.stale,
            owners=len(ledger.owners()),
            calls=self.unfinished_of((Kind.CALL,)),
            items=self.unfinished_of((Kind.ITEM,)),
            nbytes=self._payloads.nbytes,
            kept_bytes=self._kept.nbytes,
            undelivered_outcomes=self._mail.unread,
            scheduled=counts[MessageState.SCHEDULED],
            expired=counts[MessageState.EXPIRED],
            retries=self._retries,
            dead_bytes=self._letters.nbytes,
            waiting=self._waiting(),
            oldest_ready_at=self._oldest_ready_at(),
        )

    def depth(self) -> QueueDepth:
        """The few counts that are asked for all the time; costs less than `stats`."""
        counts = self._ledger.counts()
        return QueueDepth(
            counts[MessageState.READY],
            counts[MessageState.DELIVERED],
            counts[MessageState.SCHEDULED],
            self._mail.unread,
            self._waiting(),
        )

    def _waiting(self) -> tuple[tuple[int, tuple[str, ...], int], ...]:
        """What is ready or scheduled, by route: unfinished and not delivered, of which there are few."""
        waiting = dict(self._payloads.unfinished)
        for entry, start, stop in self._payloads.pieces(self._ledger.runs_in(MessageState.DELIVERED)):
            if entry is not None:
                waiting[entry.route] -= stop - start
        return tuple((*self._routes[route], count) for route, count in waiting.items() if count)

    def _oldest_ready_at(self) -> int:
        if not self._ledger.ready:
            return 0
        oldest = self._ledger.runs_in(MessageState.READY)[0][0]
        return self._payloads.entry(oldest).put_time(oldest)

    # -- inside

    def _apply(self, event: Event | None, ride: Ride = None) -> int:
        """Let `event` happen, if there is one; returns how many messages it moved."""
        if event is None or isinstance(event, Put):
            return 0
        self._happen(event, ride)
        return sum([stop - start for start, stop in event.runs])


def as_runs(seqs: Sequence[int]) -> list[Run]:
    """Ascending numbers as runs."""
    return list(merge_runs([(seq, seq + 1) for seq in seqs]))
