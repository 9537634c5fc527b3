"""Who hears how messages ended: their clients, whoever asks by key, and followers.

An outcome goes to the outbox of the batch's client, and into the kept results if the batch says so. A *follower* is
anybody else who waits for one message: who subscribed to it by name, or submitted a task under a key that it has. Its
outcome comes addressed as the follower counts, in a batch that the follower numbered.

Invariants: an outcome is delivered once to each outbox that is to have it, in the order things happened; a follower is
forgotten when it has been told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from daskqueue_core.batch import Keep, Run
from daskqueue_core.outcomes import Cursor, End, KeptResults, Outbox, Outcome, Outcomes
from daskqueue_core.payloads import Entry

__all__ = ["OUTBOX_BYTES", "Address", "Mail", "MailRows"]

OUTBOX_BYTES: Final = 64 << 20  # that one client may have to read before nothing more is leased
AWAY: Final = 60 * 10**9  # a client that polled no later is not waited for


class Address(NamedTuple):
    """Where a follower wants the outcome: as message `index` of its batch `first`."""

    client: int
    first: int
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record


class MailRows(NamedTuple):
    """What `Mail` holds beside the kept results, as rows."""

    outboxes: list[tuple[int, int, list[tuple[Outcome, int | None]]]]  # client, read at, what is unread
    followers: list[tuple[int, list[Address]]]  # by message


class Mail:
    """The outboxes of all clients, the kept results and the followers of one queue."""

    def __init__(self, word: str, kept: KeptResults, clock: Callable[[], int]) -> None:
        self.kept = kept
        self._word = word
        self._clock = clock
        self._dropped = 0  # outboxes ever: a cursor of one that was dropped means nothing to the next
        self._outboxes: dict[int, Outbox] = {}
        self.followers: dict[int, list[Address]] = {}
        """Who but its client waits for a message, by message."""

    # -- clients

    def poll(self, client: int, cursor: Cursor | None, limit_bytes: int) -> Outcomes:
        """What `client` has not acknowledged."""
        outbox = self._outbox(client)
        now = outbox.read_at = self._clock()
        collected = outbox.acknowledge(cursor)
        if collected:
            self.kept.collected(collected, now)
        return outbox.read(limit_bytes)

    def waits_for(self, client: int) -> bool:
        """Whether `client` has something to read."""
        return bool(self._outboxes.get(client))

    def is_clogged(self) -> bool:
        """Whether a client that is there has so much to read that more work would only fill this host's memory."""
        for outbox in self._outboxes.values():
            if outbox.nbytes > OUTBOX_BYTES and outbox.read_at > self._clock() - AWAY:
                return True
        return False

    @property
    def unread(self) -> int:
        """Outcomes that clients have not acknowledged."""
        return sum(map(len, self._outboxes.values()))

    def drop_absent(self) -> list[int]:
        """Clients that did not poll for the time to live are gone: nobody reads their outcomes. Returns them.

        Kept ones stay while there is room, for whoever asks by key.
        """
        if self.kept.ttl is None:
            return []
        since = self._clock() - self.kept.ttl
        gone = [client for client, outbox in self._outboxes.items() if outbox.read_at <= since]
        self._dropped += len(gone)
        for client in gone:
            self.kept.abandon(self._outboxes.pop(client).kept())
        return gone

    def next_at(self) -> int | None:
        """When something is over its time."""
        ttl = self.kept.ttl
        times = [] if ttl is None else [outbox.read_at + ttl for outbox in self._outboxes.values() if outbox]
        at = self.kept.next_at()
        return min(times if at is None else [*times, at], default=None)

    def _outbox(self, client: int) -> Outbox:
        outbox = self._outboxes.get(client)
        if outbox is None:
            word = f"{self._word}:{self._dropped}" if self._dropped else self._word
            outbox = self._outboxes[client] = Outbox(word, self._clock())
        return outbox

    # -- outcomes

    def deliver(self, entry: Entry, runs: tuple[Run, ...], outcome: Outcome) -> None:
        """The messages `runs` of `entry` ended."""
        batch = entry.batch
        if batch.keep != Keep.NONE:
            kept = self.kept.add(batch.client, outcome, runs) if batch.keep == Keep.KEEP else None
            self._outbox(batch.client).add(outcome, kept)
        if self.followers:
            self._tell_followers(runs, outcome)

    def send(self, to: Address, outcome: Outcome, position: int) -> None:
        """Tell a follower: it is message `position` of `outcome` that it waits for.

        Values of a run are one pickle, so all of them go, under an index that puts the right one in its place.
        """
        one = outcome._replace(
            first=to.first,
            index=to.index - position,
            accepted=() if outcome.count == 1 else ((position, position + 1),),
            errors=tuple(error for error in outcome.errors if error[0] == position),
        )
        self._outbox(to.client).add(one)

    def refuse(self, to: Address, end: End) -> None:
        """Nothing was put for this one."""
        self._outbox(to.client).add(Outcome(to.first, to.index, 1, end=end))

    # -- followers

    def follow(self, seq: int, follower: Address) -> None:
        """Tell `follower` when message `seq` ends. Said twice, it is told once."""
        followers = self.followers.setdefault(seq, [])
        if follower not in followers:
            followers.append(follower)

    def unfollow(self, client: int, first: int, lo: int, hi: int) -> list[tuple[int, int, int]]:
        """These of a client's do not wait any more: for them it ends as cancelled. Returns those that did."""
        left: list[tuple[int, int, int]] = []
        for seq, followers in list(self.followers.items()):
            for each in list(followers):
                if each.client == client and each.first == first and lo <= each.index < hi:
                    followers.remove(each)
                    self.refuse(each, End.CANCELLED)
                    left.append((first, each.index, each.index + 1))
            if not followers:
                del self.followers[seq]
        return sorted(left)

    def _tell_followers(self, runs: Sequence[Run], outcome: Outcome) -> None:
        shift = runs[0][0] - outcome.runs[0][0]
        for start, stop in runs:
            few = len(self.followers) < stop - start
            ended = [seq for seq in self.followers if start <= seq < stop] if few else range(start, stop)
            for seq in ended:
                for follower in self.followers.pop(seq, ()):
                    self.send(follower, outcome, seq - shift)

    # -- a move

    def rows(self) -> MailRows:
        """Everything."""
        outboxes = [(client, each.read_at, each.items()) for client, each in self._outboxes.items()]
        return MailRows(outboxes, list(self.followers.items()))

    def load(self, rows: MailRows, *, gap: int) -> None:
        """The rows of `rows`, into what has none: all is sent again from the start.

        For `gap` nanoseconds there was nobody to poll, so nobody was silent.
        """
        for client, read_at, items in rows.outboxes:
            outbox = self._outbox(client)
            outbox.read_at = read_at + gap
            for outcome, kept in items:
                outbox.add(outcome, kept)
        for seq, followers in rows.followers:
            self.followers[seq] = list(followers)

    def clear(self) -> None:
        """Let go of everything."""
        self._outboxes.clear()
        self.followers.clear()
