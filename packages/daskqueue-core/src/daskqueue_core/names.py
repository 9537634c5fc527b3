"""Which message a task's name means.

A task is named by its explicit key, a string, or by its client and the client's own number of it. Keys are the
ledger's. Here are the numbers: batches of clients, found by any number in them. What nobody waits for (`Keep.NONE`)
has no number of a client's; it is named `(0, seq)`, by the queue's own.

Invariants: a client's numbers are looked up among its batches that are still known to the queue, in O(log n); where two
batches hold a number (a part that was put again), the later one in the client's count wins.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable

from daskqueue_core.payloads import Entry

__all__ = ["Names", "TaskName"]

TaskName = str | tuple[int, int]
"""An explicit key, or a client and its number."""


class _Client:
    """The batches of one client, by their first numbers."""

    __slots__ = ("entries", "firsts", "longest", "next")

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.firsts: list[int] = []  # ascending; some may be gone
        self.longest = 0
        self.next = 0  # above every number heard of


class Names:
    """The batches of all clients."""

    def __init__(self) -> None:
        self._clients: dict[int, _Client] = {}

    def add(self, entry: Entry) -> None:
        """A batch was put."""
        batch = entry.batch
        client = self._clients.get(batch.client)
        if client is None:
            client = self._clients[batch.client] = _Client()
        first, count = batch.first, batch.count
        if not client.firsts or first > client.firsts[-1]:
            client.firsts.append(first)
        elif first not in client.entries:
            insort(client.firsts, first)
        client.entries[first] = entry
        if count > client.longest:
            client.longest = count
        if first + count > client.next:
            client.next = first + count

    def drop(self, entry: Entry) -> None:
        """Nothing of this batch is known any more."""
        client = self._clients.get(entry.batch.client)
        first = entry.batch.first
        if client is None or client.entries.get(first) is not entry:  # not that of a copy that was put again
            return
        del client.entries[first]
        if len(client.firsts) > 2 * len(client.entries) + 64:
            client.firsts = sorted(client.entries)

    def find(self, client: int, number: int) -> int | None:
        """The message that the client counts as `number`, if its batch is known."""
        runs = self.runs(client, number, number + 1)
        return runs[0][0] if runs else None

    def runs(self, client: int, lo: int, hi: int) -> list[tuple[int, int]]:
        """The messages that the client counts as `lo` to `hi`, as far as their batches are known."""
        known = self._clients.get(client)
        if known is None:
            return []
        found: list[tuple[int, int]] = []
        firsts = known.firsts
        at = bisect_right(firsts, hi - 1) - 1
        while at >= 0 and firsts[at] + known.longest > lo and lo < hi:
            entry = known.entries.get(firsts[at])
            at -= 1
            if entry is None:
                continue
            first = entry.batch.first
            start, stop = max(lo, first), min(hi, first + entry.batch.count)
            if start < stop:
                found.append((entry.base + start - first, entry.base + stop - first))
                hi = start
        return found[::-1]

    def was_given(self, client: int, number: int) -> bool:
        """Whether the client has put such a number, or a higher one."""
        known = self._clients.get(client)
        return known is not None and number < known.next

    def leave(self, client: int) -> None:
        """The client is gone: what it counted is remembered only as long as there are messages of it."""
        known = self._clients.get(client)
        if known is not None and not known.entries:
            del self._clients[client]

    def rows(self) -> list[tuple[int, int, list[int]]]:
        """Of every client: its id, the number above all it gave, and where its batches begin in the queue."""
        return [
            (client, known.next, sorted([entry.base for entry in known.entries.values()]))
            for client, known in self._clients.items()
        ]

    def load(self, client: int, above: int, entries: Iterable[Entry]) -> None:
        """A row of `rows`."""
        known = self._clients[client] = _Client()
        for entry in entries:
            self.add(entry)
        known.next = above

    def clear(self) -> None:
        """Nothing is known."""
        self._clients.clear()
