"""Where the payloads are: the batches in a queue, found by message, and let go when nobody needs them.

An `Entry` is a batch from its put until nothing of it is known: its payload goes when the last of its messages has
ended (and no dead letter needs it), the rest when the last of them cannot be named any more. `Again` is one requeued
message with a payload and a life of its own, laid over the entry it came from.

Not here: what state a message is in. The ledger knows, and says what was freed; this only counts.

Invariants: `live` counts the messages that need the payload (unfinished, or dead without a body of their own), `known`
those that are not gone; `live <= known`; an entry without known messages is in no index. `nbytes` is what the payloads
of live entries, of requeued messages and of dead letters take.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from daskqueue_core.batch import Batch, Buffer, Keep, Part, Run, lengths_column
from daskqueue_core.dead_letters import DeadLetters

__all__ = ["Again", "AgainRow", "Entry", "EntryRow", "Payloads"]

_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor
_SHARED: Final = Batch._fields.index("shared")
_KEEP: Final = Batch._fields.index("keep")

EntryRow = tuple[int, Batch, int, int, int, int]
"""Base, batch, when it was put, route, live, known."""

AgainRow = tuple[int, Batch, "Buffer | None", "str | None", int]
"""A requeued message: number, template, body of its own, key, life."""


class Entry:
    """A batch in the queue: where it begins, and how many of its messages still need it."""

    __slots__ = ("_template", "base", "batch", "ends", "known", "live", "put_at", "route", "stop")

    life = 0
    """How often its messages were requeued."""

    def __init__(self, base: int, batch: Batch, put_at: int, route: int) -> None:
        self.base = base
        self.stop = base + batch.count
        self.batch = batch
        self.put_at = put_at
        self.route = route
        self.live = self.known = batch.count
        self.ends: Sequence[int] | None = None
        self._template: Batch | None = None

    @property
    def origin(self) -> Entry:
        """The batch as its client knows it: outcomes are counted from there."""
        return self

    def part(self, start: int, stop: int, have: Collection[int], attempts: bytes = b"") -> Part:
        """The messages `start` to `stop`, as a lease ships them."""
        batch = self.batch
        lo, hi = start - self.base, stop - self.base
        body: Buffer | None = batch.body
        lengths, keys = batch.lengths, batch.keys
        if not lengths:
            if self.base in have:
                body = None
        elif hi - lo != batch.count:
            body = self.body(lo, hi)
            lengths = lengths[4 * lo : 4 * hi]
        if keys:
            keys = keys[lo:hi]
        row: tuple[Any, ...] = batch[_SHARED:_KEEP]  # in one go: a field of a NamedTuple by its name costs a call
        shared, kind, function, client, first = row
        return _new(
            Part,
            (
                start,
                stop,
                self.base,
                batch.offset + lo,
                body,
                lengths,
                shared,
                kind,
                function,
                batch.control,
                attempts,
                client,
                first + lo,
                keys,
            ),
        )

    def body(self, lo: int, hi: int) -> memoryview:
        """The bodies of the singles `lo` to `hi`: a view."""
        ends = self.ends
        if ends is None:
            ends = self.ends = self.batch.ends()
        return memoryview(self.batch.body)[ends[lo - 1] if lo else 0 : ends[hi - 1]]

    def single(self, seq: int) -> bytes | None:
        """A copy of the message's own bytes; None in a block, whose messages have none."""
        return bytes(self.body(seq - self.base, seq - self.base + 1)) if self.batch.lengths else None

    def put_time(self, seq: int) -> int:
        """When a message of it was put."""
        return self.put_at

    def nbytes_of(self, start: int, stop: int) -> int:
        """About what these messages take in a lease; of a block, all of it."""
        batch = self.batch
        return batch.nbytes * (stop - start) // batch.count if batch.lengths else batch.nbytes

    @property
    def held(self) -> int:
        """What it counts in the room of the queue."""
        return self.batch.nbytes if self.live else 0

    def template(self) -> Batch:
        """The batch without its payload: what one of its messages needs beside its own body to be run again."""
        if self._template is None:
            self._template = self.batch._replace(body=b"", lengths=b"", keys=(), offset=0)
        return self._template

    def release(self) -> None:
        """Nobody runs any of it: only its name is left."""
        batch = self.batch
        self.batch = Batch(batch.count, b"", client=batch.client, first=batch.first, keep=batch.keep)
        self.ends = self._template = None


class Again(Entry):
    """A requeued message. Without a `body` of its own it runs out of the payload it had, which stays for it."""

    __slots__ = ("_origin", "life", "own_bytes")

    def __init__(
        self, seq: int, origin: Entry, template: Batch, body: bytes | None, key: str | None, life: int
    ) -> None:
        at = seq - origin.base
        if body is None:
            one = origin.batch.cut(at, at + 1)._replace(keys=())
        else:
            one = template._replace(count=1, body=body, lengths=lengths_column([body]), first=template.first + at)
        super().__init__(seq, one if key is None else one._replace(keys=(key,)), origin.put_at, origin.route)
        self._origin = origin
        self._template = template
        self.own_bytes = None if body is None else len(body)
        self.life = life

    @property
    def origin(self) -> Entry:
        return self._origin

    def row(self) -> AgainRow:
        """What it takes to make it again."""
        keys, body = self.batch.keys, None if self.own_bytes is None else self.batch.body
        return self.base, self.template(), body, keys[0] if keys else None, self.life


class Payloads:
    """The entries of a queue."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.unfinished: dict[int, int] = {}  # by route
        self._bases: list[int] = []  # of entries, ascending; some may be gone
        self._entries: dict[int, Entry] = {}
        self._last: Entry | None = None  # that was found: one message is looked up several times on its way
        self._again: dict[int, Again] = {}
        self._seqs_again: list[int] = []  # ascending; some may be gone

    def add(self, base: int, batch: Batch, put_at: int, route: int) -> Entry:
        """A batch was put, its first message is number `base`."""
        if batch.ready_ats:  # the ledger has them
            batch = batch._replace(ready_ats=b"")
        entry = self._entries[base] = Entry(base, batch, put_at, route)
        self._bases.append(base)
        self.unfinished[route] = self.unfinished.get(route, 0) + batch.count
        self.nbytes += batch.nbytes
        return entry

    def find(self, seq: int) -> Entry | None:
        """The batch of a message, if anything of that is known; its own entry if it was requeued."""
        if self._again:
            again = self._again.get(seq)
            if again is not None:
                return again
        entry = self._last
        if entry is not None and entry.base <= seq < entry.stop:
            return entry
        at = bisect_right(self._bases, seq) - 1
        if at < 0:
            return None
        entry = self._entries.get(self._bases[at])
        if entry is None or seq >= entry.stop:
            return None
        self._last = entry
        return entry

    def batch_at(self, base: int) -> Entry:
        """The batch that begins at `base`, whatever was requeued of it."""
        return self._entries[base]

    def entry(self, seq: int) -> Entry:
        """The batch of a message that has not ended."""
        entry = self.find(seq)
        assert entry is not None, f"message {seq} has no batch"
        return entry

    def stop(self, entry: Entry, seq: int, stop: int) -> int:
        """Up to where, `stop` at most, the messages from `seq` on are in `entry`."""
        end = entry.stop if entry.stop < stop else stop
        if self._again:
            at = bisect_right(self._seqs_again, seq)
            while at < len(self._seqs_again) and self._seqs_again[at] < end:
                if self._seqs_again[at] in self._again:
                    return self._seqs_again[at]
                at += 1
        return end

    def holder(self, start: int, stop: int) -> Entry | None:
        """The batch that these messages are in, if all are in one and nothing was ever requeued."""
        entry = self._last
        if entry is None or not entry.base <= start < entry.stop:
            entry = self.find(start)
        return None if entry is None or stop > entry.stop or self._again else entry

    def pieces(self, runs: Sequence[Run]) -> list[tuple[Entry | None, int, int]]:
        """`runs` cut where entries begin and end; None for what no entry is known of."""
        if len(runs) == 1 and not self._again:  # the common case
            start, stop = runs[0]
            entry = self.find(start)
            if entry is not None and start < stop <= entry.stop:
                return [(entry, start, stop)]
        out: list[tuple[Entry | None, int, int]] = []
        for start, stop in runs:
            while start < stop:
                entry = self.find(start)
                if entry is None:
                    at = bisect_right(self._bases, start)
                    end = stop if at == len(self._bases) else min(stop, self._bases[at])
                else:
                    end = self.stop(entry, start, stop)
                out.append((entry, start, end))
                start = end
        return out

    def by_entry(self, runs: tuple[Run, ...]) -> list[tuple[Entry, tuple[Run, ...]]]:
        """`runs`, ascending, sorted by their entries."""
        if len(runs) == 1:
            start, stop = runs[0]
            entry = self.find(start)
            if entry is not None and self.stop(entry, start, stop) == stop:
                return [(entry, runs)]
        found: list[tuple[Entry, list[Run]]] = []
        for piece, start, stop in self.pieces(runs):
            if piece is None:
                continue
            if found and found[-1][0] is piece:
                found[-1][1].append((start, stop))
            else:
                found.append((piece, [(start, stop)]))
        return [(entry, tuple(of_entry)) for entry, of_entry in found]

    # -- ends

    def free(self, runs: Sequence[Run], *, gone: bool) -> list[Entry]:
        """These messages ended; `gone`: and nobody can name them any more. Returns the entries that are over."""
        over: list[Entry] = []
        for entry, start, stop in self.pieces(runs):
            if entry is None:
                continue
            count = stop - start
            self.unfinished[entry.route] -= count
            if gone or entry.batch.keep != Keep.KEEP:
                self._lose(entry.origin, count, over)
            self._let_go(entry, start, stop)
        self._tidy()
        return over

    def free_of(self, entry: Entry, start: int, stop: int) -> None:
        """As `free` of messages that `holder` finds in `entry`, and nobody can name any more."""
        count = stop - start
        self.unfinished[entry.route] -= count
        entry.known -= count
        if not entry.known:
            del self._entries[entry.base]
            self._last = None
            if len(self._bases) > 2 * len(self._entries) + 64:
                self._tidy()
        self._let_go(entry, start, stop)

    def forget(self, runs: Sequence[Run]) -> list[Entry]:
        """What was known of these, whose outcome was kept, is forgotten. Returns the entries that are over."""
        over: list[Entry] = []
        for entry, start, stop in self.pieces(runs):
            if entry is not None and entry.batch.keep == Keep.KEEP:  # of others nothing was known since they ended
                self._lose(entry, stop - start, over)
        self._tidy()
        return over

    def bury(self, entry: Entry, seq: int, body: bytes | None) -> None:
        """Message `seq` of `entry` became a dead letter, whose payload is `body`, or None: it stays where it is."""
        self.unfinished[entry.route] -= 1
        if body is None:
            return
        self.nbytes += len(body)
        self._let_go(entry, seq, seq + 1)

    def exhume(self, seq: int, body: bytes | None) -> list[Entry]:
        """A dead letter is gone for good. Returns the entries that are over."""
        over: list[Entry] = []
        entry = self.find(seq)
        if entry is None:
            return over
        self._lose(entry.origin, 1, over)
        if body is None:
            self._let_go(entry, seq, seq + 1)
        else:
            self.nbytes -= len(body)
        self._tidy()
        return over

    def requeue(self, seq: int, template: Batch, body: bytes | None, key: str | None, life: int) -> None:
        """A dead letter lives again, with what was buried."""
        origin = self.entry(seq).origin
        self._again[seq] = Again(seq, origin, template, body, key, life)
        self.unfinished[origin.route] += 1
        at = bisect_left(self._seqs_again, seq)
        if at == len(self._seqs_again) or self._seqs_again[at] != seq:
            self._seqs_again.insert(at, seq)

    # -- a move

    def rows(self) -> tuple[list[EntryRow], list[AgainRow]]:
        """All entries, in the order of their numbers, and what was requeued of them."""
        entries = [
            (base, each.batch, each.put_at, each.route, each.live, each.known) for base, each in self._entries.items()
        ]
        return entries, self.rows_again()

    def rows_again(self) -> list[AgainRow]:
        """What was requeued."""
        return [each.row() for each in self._again.values()]

    def load(self, entries: Sequence[EntryRow], again: Sequence[AgainRow]) -> None:
        """The rows of `rows`, into a queue without any; then comes what else `nbytes` and `unfinished` count."""
        for base, batch, put_at, route, live, known in entries:
            entry = self._entries[base] = Entry(base, batch, put_at, route)
            entry.live, entry.known = live, known
            self._bases.append(base)
        for seq, template, body, key, life in again:
            origin = self.entry(seq).origin
            self._again[seq] = Again(seq, origin, template, None if body is None else bytes(body), key, life)
        self._seqs_again = sorted(self._again)

    def validate(self, unfinished: Callable[[int], bool], letters: DeadLetters) -> None:
        """AssertionError if an invariant is broken; `unfinished` says of a message whether it will still end."""
        nbytes = 0
        counts: dict[int, int] = dict.fromkeys(self.unfinished, 0)
        for base, entry in self._entries.items():
            seqs = range(base, entry.stop)
            alive = [seq for seq in seqs if unfinished(seq)]
            dead = [seq for seq in seqs if letters.get(seq) is not None]
            counts[entry.route] += len(alive)
            needed = 0
            for seq in seqs:
                again, letter = self._again.get(seq), letters.get(seq)
                if again is not None and again.own_bytes is not None:
                    nbytes += again.own_bytes
                elif letter is not None and letter.body is not None:
                    nbytes += len(letter.body)
                else:
                    needed += seq in alive or letter is not None
            assert entry.live == needed, f"batch {base}: live={entry.live}, but {needed} need its payload"
            assert len(alive) + len(dead) <= entry.known, f"batch {base}: known={entry.known} of {alive} and {dead}"
            assert 0 < entry.known <= len(seqs), f"batch {base}: known={entry.known}"
            nbytes += entry.held
        assert nbytes == self.nbytes, f"nbytes={self.nbytes}, but payloads have {nbytes}"
        assert counts == self.unfinished, f"unfinished={self.unfinished}, but by entry {counts}"
        for index, known in ((self._bases, self._entries.keys()), (self._seqs_again, self._again.keys())):
            assert index == sorted(set(index)), "an index is not ascending"
            assert known <= set(index), f"not to be found: {known - set(index)}"

    def clear(self) -> None:
        """Let go of everything."""
        self._bases.clear()
        self._entries.clear()
        self._last = None
        self._again.clear()
        self._seqs_again.clear()

    def _let_go(self, entry: Entry, start: int, stop: int) -> None:
        """These messages of `entry` do not need its payload any more."""
        entry.live -= stop - start
        if entry.live:
            return
        if isinstance(entry, Again):
            del self._again[entry.base]
            if entry.own_bytes is None:
                self._let_go(entry.origin, start, stop)
            else:
                self.nbytes -= entry.own_bytes
        else:
            self.nbytes -= entry.batch.nbytes
            if entry.known:
                entry.release()

    def _lose(self, entry: Entry, count: int, over: list[Entry]) -> None:
        """`count` messages of `entry` cannot be named any more."""
        entry.known -= count
        if entry.known == 0:
            del self._entries[entry.base]
            if self._last is entry:
                self._last = None
            over.append(entry)

    def _tidy(self) -> None:
        if len(self._bases) > 2 * len(self._entries) + 64:
            self._bases = sorted(self._entries)
        if len(self._seqs_again) > 2 * len(self._again) + 64:
            self._seqs_again = sorted(self._again)
