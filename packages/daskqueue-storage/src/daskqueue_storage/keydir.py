"""Where the payloads are: core's `Payloads` with bodies that stay on disk.

An entry knows the record of its batch, and reads it when a lease ships messages of it: header, checksum, then views. In
memory is what core needs to choose and to answer: counts, names, sizes. Messages put one by one share an entry
(`singles`).

Not here: which messages live (the ledger), and when segments go (`store`).

Invariants: an entry that somebody needs (`live`) has a place, unless its record is damaged; the shelf counts the
records of such entries. What is read was verified at this very reading.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, cast

from daskqueue_core.batch import Batch, Part
from daskqueue_core.dead_letters import DeadLetters
from daskqueue_core.payloads import Again, AgainRow, Entry, EntryRow, Payloads
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.records import Sizes, payload_of
from daskqueue_storage.shelf import Absent, Place, Shelf, slim
from daskqueue_storage.singles import MOST, Singles, SinglesRow, may_join
from daskqueue_storage.tail import FoundSingles

__all__ = ["Absent", "DiskEntry", "DiskPayloads", "Needed", "Place", "Shelf", "slim"]


class Needed(NamedTuple):
    """A record that somebody needs: of these messages, at that place."""

    base: int
    stop: int
    place: Place


class DiskEntry(Entry):
    """A batch whose payload is on disk."""

    __slots__ = ("place", "shelf")

    def __init__(self, shelf: Shelf, place: Place | None, base: int, batch: Batch, put_at: int, route: int) -> None:
        super().__init__(base, batch, put_at, route)
        self.shelf = shelf
        self.place = place

    def loaded(self) -> Batch:
        """The batch with its payload; `DamagedRecord` if it cannot be read."""
        if self.place is None:
            raise DamagedRecord(f"batch {self.base}", 0, self.base, self.stop)
        batch = self.batch
        header, body = self.shelf.read(self.place, self.base, batch.count)
        sizes = Sizes(0, 0, len(batch.lengths), len(batch.body))
        if (header.base, header.count) != (self.base, batch.count) or len(body) < sizes.body:
            # Written so by somebody's mistake: as good as damaged.
            raise DamagedRecord(self.place.segment.path, self.place.pos, self.base, self.stop)
        content, lengths = payload_of(header, body, sizes)
        return batch._replace(body=content, lengths=lengths if batch.lengths else b"")

    def one(self, seq: int) -> Batch:
        """A message as a batch without payload."""
        batch, at = self.batch, seq - self.base
        one = batch._replace(count=1, first=batch.first + at, keys=())
        if batch.lengths:
            return slim(one, len(batch.body) // batch.count, 4)
        return one._replace(offset=batch.offset + at)

    def loaded_one(self, seq: int) -> Batch:
        """A message as a batch, with its payload."""
        at = seq - self.base
        return self.loaded()._replace(keys=()).cut(at, at + 1)

    def part(self, start: int, stop: int, have: Collection[int], attempts: bytes = b"") -> Part:
        """As `Entry.part`, read from the disk."""
        if have and self.base in have and not self.batch.lengths:
            return super().part(start, stop, have, attempts)
        whole = self.shelf.whole
        if whole is None or whole.base != self.base:
            whole = self.shelf.whole = Entry(self.base, self.loaded(), self.put_at, self.route)
        return whole.part(start, stop, have, attempts)

    def single(self, seq: int) -> bytes | None:
        """Not copied into a dead letter: it stays where it is."""
        return None


class DiskAgain(Again):
    """A requeued message that runs out of the payload it had."""

    __slots__ = ()

    def __init__(self, seq: int, origin: DiskEntry | Singles, template: Batch, key: str | None, life: int) -> None:
        one = origin.one(seq)._replace(keys=() if key is None else (key,))
        Entry.__init__(self, seq, one, origin.put_at, origin.route)
        self._origin = origin
        self._template = template
        self.own_bytes = None
        self.life = life

    def loaded(self) -> Batch:
        """The one message, with the payload."""
        return cast("DiskEntry | Singles", self._origin).loaded_one(self.base)

    def part(self, start: int, stop: int, have: Collection[int], attempts: bytes = b"") -> Part:
        """Its share of the batch it came from."""
        here, cut = self.batch, self.loaded()
        self.batch = here._replace(body=cut.body, lengths=cut.lengths, offset=cut.offset)
        try:
            return super().part(start, stop, have, attempts)
        finally:
            self.batch, self.ends = here, None

    def single(self, seq: int) -> bytes | None:
        """It stays where it is."""
        return None


class DiskPayloads(Payloads):
    """The entries of a durable queue."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.shelf = shelf
        self.places: dict[int, Place] = {}
        """Of batches that are about to be added, by base."""
        self.singles_rows: Sequence[SinglesRow] = ()
        """Of a snapshot that is about to be loaded."""
        self._growing: Singles | None = None

    def add(self, base: int, batch: Batch, put_at: int, route: int) -> Entry:
        """A batch was put and written."""
        place = self.places.pop(base)
        self.unfinished[route] = self.unfinished.get(route, 0) + batch.count
        if may_join(batch):
            size = len(batch.body)
            extra = place.blen - size
            singles = self._singles_for(base, batch, put_at, route, place, extra)
            self.nbytes += singles.add(place, size, extra)
            return singles
        thin = self.shelf.intern(slim(batch, len(batch.body), len(batch.lengths)))
        entry = self._entries[base] = DiskEntry(self.shelf, place, base, thin, put_at, route)
        self._bases.append(base)
        self.nbytes += thin.nbytes
        self.shelf.hold(place)
        return entry

    def add_singles(self, found: FoundSingles, route: int) -> None:
        """Messages were put one by one."""
        base, at, count = found.base, 0, len(found.positions)
        self.unfinished[route] = self.unfinished.get(route, 0) + count
        while at < count:
            place = Place(found.segment, found.positions[at], found.extra + found.sizes[at])
            singles = self._singles_for(base + at, found.batch, found.put_at, route, place, found.extra)
            end = min(count, at + MOST - (singles.stop - singles.base))
            before = singles.held
            singles.add_many(found.segment, found.positions[at:end], found.sizes[at:end], found.extra)
            self.nbytes += singles.held - before
            at = end

    def _singles_for(self, base: int, batch: Batch, put_at: int, route: int, place: Place, extra: int) -> Singles:
        """The entry that message `base` is to be one of."""
        if batch.ready_at or batch.expires_at or batch.ready_ats:  # the ledger has them
            batch = batch._replace(ready_at=0, ready_ats=b"", expires_at=0)
        singles = self._growing
        if singles is None or not singles.takes(base, batch, route, place, extra):
            template = self.shelf.intern(batch._replace(body=b"", lengths=b""))
            singles = self._growing = self._entries[base] = Singles(self.shelf, base, template, put_at, route)
            self._bases.append(base)
        elif not singles.known:  # it was let go with its last message, and nothing was put since
            self._entries[singles.base] = singles
            if not self._bases or self._bases[-1] != singles.base:
                self._bases.append(singles.base)
        return singles

    def requeue(self, seq: int, template: Batch, body: bytes | None, key: str | None, life: int) -> None:
        """A dead letter lives again."""
        if body is not None:
            super().requeue(seq, template, body, key, life)
            return
        origin = self.entry(seq).origin
        self._again[seq] = DiskAgain(seq, cast("DiskEntry | Singles", origin), template, key, life)
        self.unfinished[origin.route] += 1
        at = bisect_left(self._seqs_again, seq)
        if at == len(self._seqs_again) or self._seqs_again[at] != seq:
            self._seqs_again.insert(at, seq)

    def load(self, entries: Sequence[EntryRow], again: Sequence[AgainRow]) -> None:
        """The rows of a snapshot; `places` has where those that are needed stand."""
        for base, batch, put_at, route, live, known in entries:
            place = self.places.pop(base, None)
            entry = self._entries[base] = DiskEntry(self.shelf, place, base, batch, put_at, route)
            entry.live, entry.known = live, known
            self._bases.append(base)
            if place is not None:
                self.shelf.hold(place)
        for row in self.singles_rows:
            self._entries[row.base] = Singles.of_row(self.shelf, row)
        if self.singles_rows:
            self._entries = dict(sorted(self._entries.items()))
            self._bases = list(self._entries)
            self.singles_rows = ()
        for seq, template, body, key, life in again:
            origin = self.entry(seq).origin
            if body is None:
                self._again[seq] = DiskAgain(seq, cast("DiskEntry | Singles", origin), template, key, life)
            else:
                self._again[seq] = Again(seq, origin, template, bytes(body), key, life)
        self._seqs_again = sorted(self._again)

    def batches(self) -> list[DiskEntry]:
        """Those that are batches of their own, in the order of their numbers."""
        return [entry for entry in self._entries.values() if isinstance(entry, DiskEntry)]

    def singles(self) -> list[Singles]:
        """The others."""
        return [entry for entry in self._entries.values() if isinstance(entry, Singles)]

    def disk_entries(self) -> Iterator[DiskEntry]:
        """All as batches, to be looked at: a message that was put alone and is still needed is one."""
        for entry in self._entries.values():
            if isinstance(entry, DiskEntry):
                yield entry
            elif isinstance(entry, Singles):
                for seq, place in entry.places():
                    made = DiskEntry(self.shelf, place, seq, entry.one(seq), entry.put_at, entry.route)
                    yield made

    def needed(self) -> Iterator[Needed]:
        """The records that somebody needs."""
        for entry in self._entries.values():
            if isinstance(entry, Singles):
                for seq, place in entry.places():
                    yield Needed(seq, seq + 1, place)
            elif isinstance(entry, DiskEntry) and entry.place is not None:
                yield Needed(entry.base, entry.stop, entry.place)

    def knows(self, base: int) -> bool:
        """Whether a batch that began at `base` is known."""
        if base in self._entries:
            return True
        entry = self.find(base)
        return entry is not None and isinstance(entry.origin, Singles)

    def own_body(self, entry: Entry, seq: int) -> bytes:
        """A copy of a message's own bytes; nothing if it has none, or if they cannot be read."""
        try:
            if isinstance(entry, Singles):
                return bytes(entry.loaded_one(seq).body)
            if isinstance(entry, DiskAgain):
                return bytes(entry.loaded().body) if entry.batch.lengths else b""
            if isinstance(entry, DiskEntry):
                return bytes(entry.loaded_one(seq).body) if entry.batch.lengths else b""
        except DamagedRecord:
            return b""
        return entry.single(seq) or b""

    def move(self, base: int, place: Place) -> None:
        """The record of a batch stands elsewhere now; what nobody needs stays forgotten."""
        entry = self._entries.get(base)
        if entry is None:
            found = self.find(base)
            entry = None if found is None else found.origin
        if isinstance(entry, Singles):
            entry.move(base, place)
        elif isinstance(entry, DiskEntry) and entry.base == base and entry.live:
            if entry.place is not None:
                self.shelf.release(entry.place)
            entry.place = place
            self.shelf.hold(place)

    def lose(self, start: int, stop: int) -> None:
        """The record of these messages cannot be read: it holds no segment."""
        found = self.find(start)
        entry = None if found is None else found.origin
        if isinstance(entry, Singles):
            entry.lose(start, stop)
        elif isinstance(entry, DiskEntry) and entry.place is not None:
            self.shelf.release(entry.place)
            entry.place = None

    def validate(self, unfinished: Callable[[int], bool], letters: DeadLetters) -> None:
        """As `Payloads.validate`; and the shelf counts what is needed."""
        super().validate(unfinished, letters)
        live = dict.fromkeys(self.shelf.live_bytes, 0)
        for needed in self.needed():
            live[needed.place.segment.segno] = live.get(needed.place.segment.segno, 0) + needed.place.size
        assert live == self.shelf.live_bytes, f"needed of segments: {live}, but counted {self.shelf.live_bytes}"
        assert self.shelf.live == sum(live.values()), f"live={self.shelf.live} of {live}"

    def clear(self) -> None:
        """Let go of everything."""
        super().clear()
        self._growing = None

    def _let_go(self, entry: Entry, start: int, stop: int) -> None:
        if isinstance(entry, Singles):
            self.nbytes -= entry.let_go(start, stop)
            entry.live -= stop - start
            if entry.known and not entry.live:
                entry.release()
            return
        Payloads._let_go(self, entry, start, stop)
        if entry.live == 0 and isinstance(entry, DiskEntry) and entry.place is not None:
            self.shelf.release(entry.place)
            self.shelf.forget()
            entry.place = None
