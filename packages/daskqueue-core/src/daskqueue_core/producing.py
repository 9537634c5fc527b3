"""The producer's side of a queue: what a put becomes, once its number, its keys and the room are looked at.

A put is admitted as a whole or not at all. Under keys that are in use, single messages of it become followers of the
messages that have them, or are refused, and the others are put.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Full as QueueFull

from daskqueue_core.administration import QueueAdministration
from daskqueue_core.batch import PLAIN_OPTIONS, Batch, Buffer, PutOptions, lengths_column, single
from daskqueue_core.events import Put
from daskqueue_core.keyed import sift
from daskqueue_core.ledger import Duplicate, Early, UnknownProducer
from daskqueue_core.mail import Address
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Cursor, End, Outcomes
from daskqueue_core.protocols import REPLY_BYTES, Accepted, Full, Known, PutAnswer
from daskqueue_core.states import MessageState

__all__ = ["QueueProducing"]


class QueueProducing(QueueAdministration):
    """The producer's side of a queue, with its room."""

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        uuid: str,
        epoch: int,
        maxsize: int,
        max_bytes: int,
        result_ttl: int | None,
        result_max_bytes: int | None,
    ) -> None:
        super().__init__(clock=clock, uuid=uuid, epoch=epoch, result_ttl=result_ttl, result_max_bytes=result_max_bytes)
        self.maxsize = maxsize
        self.max_bytes = max_bytes

    def put(self, body: bytes) -> int:
        """Add one message; returns its number."""
        return self._put_local(single(body))

    def put_many(self, bodies: Sequence[bytes]) -> range:
        """Add messages; returns their numbers."""
        if not bodies:
            base = self._ledger.puts
            return range(base, base)
        batch = Batch(len(bodies), b"".join(bodies), lengths_column(bodies))
        base = self._put_local(batch)
        return range(base, base + batch.count)

    def put_block(self, block: Buffer, count: int) -> range:
        """Add `count` messages with one payload for all of them; returns their numbers."""
        batch = Batch(count, block)
        batch.check()
        base = self._put_local(batch)
        return range(base, base + count)

    def _put_local(self, batch: Batch) -> int:
        """Put a batch that asks for nothing special, of no producer; the number of its first message."""
        if (self.maxsize or self.max_bytes) and self._full(batch.count, (batch,)) is not None:
            raise QueueFull(f"queue {self.uuid} has {self.unfinished} messages of at most {self.maxsize}")
        ledger, clock = self._ledger, self._clock
        base = ledger.pages.next_seq
        event = ledger.decide_plain_put(batch.count, clock(), self._routes.number(batch.kind, ()))
        self._record(event, (batch,))  # as `_happen`: nothing ends by it
        self._take_put(event, (batch,))
        self._commit(event)
        return base

    def admit(self, batches: Sequence[Batch], *, producer: int | None = None, number: int = 0) -> PutAnswer:
        """Admit a producer's put, in number order: once, however often it is repeated.

        All its batches have the same options (`PutOptions`). What a key in use means is said by `on_duplicate`.
        """
        options = PutOptions.of(batches)
        now = self._clock()
        if options.keyed:
            return self._admit_keyed(batches, options, now, producer, number)
        event = self._decide_put(batches, options, now, producer, number)
        if isinstance(event, Duplicate):
            return Accepted(event.base, event.count)
        if not isinstance(event, Put):
            return event
        full = self._full(event.count, batches)
        if full is not None:
            return full
        self._happen(event, batches)
        self._commit(event)
        return Accepted(event.base, event.count)

    def _decide_put(
        self, batches: Sequence[Batch], options: PutOptions, now: int, producer: int | None, number: int
    ) -> Put | Duplicate | Early | UnknownProducer:
        count = batches[0].count if len(batches) == 1 else sum([batch.count for batch in batches])
        route = self._routes.number(options.kind, options.tags)
        if options is PLAIN_OPTIONS[options.kind]:
            return self._ledger.decide_put(count, now, route=route, producer=producer, number=number)
        return self._ledger.decide_put(
            count,
            now,
            priority=options.priority,
            route=route,
            ready_at=options.ready_at,
            ready_ats=b"".join([batch.ready_ats for batch in batches]),
            expires_at=options.expires_at,
            keys=[key for batch in batches for key in batch.keys],
            suspect=options.suspect,
            producer=producer,
            number=number,
        )

    def _admit_keyed(
        self, batches: Sequence[Batch], options: PutOptions, now: int, producer: int | None, number: int
    ) -> PutAnswer:
        """A put whose keys may be in use. Whether it comes again is asked first: then its own keys are."""
        asked = self._ledger.decide_put(sum(batch.count for batch in batches), now, producer=producer, number=number)
        if isinstance(asked, Duplicate):
            return Accepted(asked.base, asked.count)
        if not isinstance(asked, Put):
            return asked
        sifted = sift(batches, lambda key: self._ledger.find_key(key) if self._ledger.is_blocked(key) else None)
        full = self._full(sifted.total, sifted.batches) if sifted.batches else None
        if full is not None:
            return full
        for seq in sifted.replaced:
            self._make_way(seq, now)
        base, count = self._ledger.puts, sifted.total
        if sifted.batches or producer is not None:
            event = self._decide_put(sifted.batches, options, now, producer, number)
            assert isinstance(event, Put), f"queue {self.uuid}: {event} after {asked}"
            self._happen(event, sifted.batches)
            self._commit(event)
        for key, follower in sifted.follow:
            holder = self._ledger.find_key(key)
            if holder is None or not self._follow(holder, follower):
                self._mail.refuse(follower, End.DUPLICATE)
        for refused in sifted.duplicates:
            self._mail.refuse(refused, End.DUPLICATE)
        for refused in sifted.overtaken:
            self._mail.refuse(refused, End.CANCELLED)
        return Accepted(base, count)

    def _make_way(self, seq: int, now: int) -> None:
        """A new message takes the key of this one."""
        if self._ledger.state(seq) is MessageState.ACKED:
            self._apply(self._ledger.decide_forget([(seq, seq + 1)], now))
        else:
            self._apply(self._ledger.decide_cancel([(seq, seq + 1)], now))

    def _full(self, count: int, batches: Sequence[Batch]) -> Full | None:
        """Whether a put has to wait; one that is too large for an empty queue is let in."""
        if self.maxsize:
            unfinished = self._ledger.unfinished
            if unfinished and unfinished + count > self.maxsize:
                return Full(max(0, self.maxsize - unfinished))
        if self.max_bytes:
            nbytes = self._payloads.nbytes
            if nbytes and nbytes + sum(batch.nbytes for batch in batches) > self.max_bytes:
                return Full(-1)
        return None

    def poll(self, client: int, cursor: Cursor | None = None, limit_bytes: int = REPLY_BYTES) -> Outcomes:
        """The outcomes of `client` after `cursor`, which acknowledges those up to it."""
        answer = self._mail.poll(client, cursor, limit_bytes)
        if self._kept.nbytes + self._letters.nbytes > self._most:  # what is collected may go now
            self._make_room()
        return answer

    def has_outcomes(self, client: int) -> bool:
        """Whether `client` has something to read."""
        return self._mail.waits_for(client)

    def subscribe(self, client: int, first: int, names: Sequence[TaskName]) -> list[int]:
        """Let `client` hear how these tasks end, or ended: as its batch `first`. Says of each whether it is `Known`."""
        return [self._subscribe(name, Address(client, first, index)) for index, name in enumerate(names)]

    def _subscribe(self, name: TaskName, follower: Address) -> int:
        seq = self._seq(name)
        if seq is not None and self._follow(seq, follower):
            return Known.KNOWN
        if isinstance(name, str):
            return Known.UNKNOWN
        client, number = name
        given = seq is not None if client == 0 else self._names.was_given(client, number)
        return Known.EXPIRED if given else Known.UNKNOWN
