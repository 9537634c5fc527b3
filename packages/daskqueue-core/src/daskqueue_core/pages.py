"""The states of all messages of a queue, a page of consecutive numbers at a time.

A page whose messages are all in one state is one small object; otherwise it has a byte per message. A page whose
messages are all GONE is dropped, so finished work costs nothing. One thing changes states: the compiled table of a
`Move`, applied to runs. A page also knows the lane of its messages (a small number: who is served before whom is
`lanes`' business), and counts failed attempts once there is one. Nothing here knows leases, order or time.

Invariants, checked by `validate`:
- `next_seq` is the first number not given yet; no page reaches past it, and a page that is missing below it is GONE.
- `counts[byte]` is the number of messages with that byte, but 0 for GONE: that number is derived, see `gone`.
  `Page.live` is the number of messages of the page that are not GONE.
- Only the tail page, which may still grow, has no live message.
- `Page.lanes` is a column if messages of the page are in different lanes, `Page.attempts` if one of them failed.
- A refused move changes nothing: `plan` checks all runs of an event before `write` moves the first.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from daskqueue_core.batch import Run
from daskqueue_core.errors import IllegalMove
from daskqueue_core.page_table import GONE, READY, Page, PageTable
from daskqueue_core.runs import disjoint
from daskqueue_core.states import REFUSED, flags_of, state_of

__all__ = ["ATTEMPTS_MAX", "Pages", "Step"]

ATTEMPTS_MAX: Final = 255
_ONE_MORE: Final = bytes([*range(1, ATTEMPTS_MAX + 1), ATTEMPTS_MAX])

Step = tuple[int, int, int, int | bytes, int | bytes]
"""What a planned move does to one page: page, position, how many, and their bytes before and after (one, if equal)."""


class Pages(PageTable):
    """The bytes of all messages, and what changes them."""

    __slots__ = ()

    # -- restoring

    def put_back(self, index: int, page: Page) -> None:
        """A page of a snapshot."""
        self._pages[index] = page

    # -- moving

    def append(self, count: int, byte: int = READY, lane: int = 0) -> None:
        """`count` new messages."""
        seq = self.next_seq
        self.next_seq = seq + count
        self.counts[byte] += count
        page = self._pages.get(seq >> self._shift)
        if page is not None and page.lane == lane and page.lanes is None and page.count + count < self.size:
            states = page.states
            if states is not None:
                states += self._fill[byte][:count]
            elif page.state != byte:
                page.states = bytearray(self._fill[page.state][: page.count] + self._fill[byte][:count])
            page.count += count
            page.live += count
            return  # the common case
        while count:
            index = seq >> self._shift
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = Page(byte, lane)
                page.count = page.live = n = count if count < self.size else self.size
                seq += n
                count -= n
                continue
            n = min(count, self.size - page.count)
            if page.lanes is not None:
                page.lanes.extend(array("H", [lane]) * n)
            elif page.lane != lane:
                if page.live:
                    page.lanes = array("H", [page.lane]) * page.count + array("H", [lane]) * n
                else:
                    page.lane = lane
            page.live += n
            self._extend(page, byte, n)
            seq += n
            count -= n

    def skip(self, seq: int) -> None:
        """The numbers below `seq` that were not given never will be: their put is lost."""
        self.skipped += max(0, seq - self.next_seq)
        while self.next_seq < seq:
            index = self.next_seq >> self._shift
            page = self._pages.get(index)
            n = min(seq, (index + 1) << self._shift) - self.next_seq
            if page is None:
                if n == self.size:
                    self.next_seq += (seq - self.next_seq) & ~self._mask
                    continue
                page = self._pages[index] = Page(GONE)
            if page.lanes is not None:
                page.lanes.extend(array("H", [0]) * n)
            self._extend(page, GONE, n)
            self.next_seq += n
            if page.live == 0 and page.count == self.size:
                del self._pages[index]

    def _extend(self, page: Page, byte: int, n: int) -> None:
        """`n` more messages at the end of `page`."""
        if page.states is not None:
            page.states += self._fill[byte][:n]
        elif page.state != byte and page.count:
            page.states = bytearray(self._fill[page.state][: page.count] + self._fill[byte][:n])
        page.count += n
        if page.states is not None and page.count == self.size:
            self._collapse(page, page.states)

    def move_uniform(self, start: int, stop: int, table: bytes) -> int:
        """Move a run that lies in one page and one state, the common case, in one go.

        Returns the byte it was; -1 if this is not the common case, or refused: nothing was done, `plan` knows why.
        """
        index = start >> self._shift
        page = self._pages.get(index)
        lo = start & self._mask
        n = stop - start
        if page is None or n <= 0 or lo + n > page.count:
            return -1
        states = page.states
        if states is None:
            before = page.state
            after = table[before]
            if after == REFUSED:
                return -1
            if n == page.count:
                page.state = after
            elif after != before:
                page.states = states = bytearray(self._fill[before][: page.count])
                states[lo : lo + n] = self._fill[after][:n]
        else:
            before = states[lo]
            after = table[before]
            if after == REFUSED:
                return -1
            if n == 1:
                states[lo] = after
            elif states.startswith(self._fill[before][:n], lo):
                states[lo : lo + n] = self._fill[after][:n]
            else:
                return -1
            if states[0] == states[-1] and page.count == self.size:
                self._collapse(page, states)
        counts = self.counts
        counts[before] -= n
        if after == GONE:
            page.live -= n
            if page.live == 0 and page.count == self.size:
                del self._pages[index]
        else:
            counts[after] += n
        return before

    def plan(self, runs: Sequence[Run], table: bytes, event: object) -> list[Step]:
        """The steps that move all of `runs`. Raises `IllegalMove` if one message, or the event, cannot be moved."""
        if not runs or (not disjoint(runs)):
            raise IllegalMove(event, None, None, "it names no message, or one of them twice")
        steps: list[Step] = []
        size, shift, mask, pages, fill = self.size, self._shift, self._mask, self._pages, self._fill
        for start, stop in runs:
            if start < 0 or stop > self.next_seq:
                raise IllegalMove(event, None, min(start, 0) or max(start, self.next_seq), "no such message was put")
            while start < stop:
                lo = start & mask
                n = min(size - lo, stop - start)
                page = pages.get(start >> shift)
                states = None if page is None else page.states
                first = self.byte(start)
                if states is None or n == 1 or states.startswith(fill[first][:n], lo):
                    after = table[first]
                    if after == REFUSED:
                        raise IllegalMove(event, state_of(first), start)
                    steps.append((start >> shift, lo, n, first, after))
                else:
                    mixed = bytes(states[lo : lo + n])
                    moved = mixed.translate(table)
                    bad = moved.find(REFUSED)
                    if bad >= 0:
                        raise IllegalMove(event, state_of(mixed[bad]), start + bad)
                    steps.append((start >> shift, lo, n, mixed, moved))
                start += n
        return steps

    def write(self, steps: Sequence[Step]) -> None:
        """Make the moves of a plan. Nothing else may have moved since it was made.

        No move applies to its own result, so a page neither collapses nor goes while a step of the plan waits for it.
        """
        counts, size, fill = self.counts, self.size, self._fill
        for index, lo, n, before, after in steps:
            page = self._pages[index]
            states = page.states
            if isinstance(before, int):
                assert isinstance(after, int)
                counts[before] -= n
                counts[after] += n
                ended = n if after == GONE else 0
                if states is None and n == page.count:
                    page.state = after
                else:
                    if states is None:
                        states = page.states = bytearray(fill[before][: page.count])
                    if n == 1:
                        states[lo] = after
                    else:
                        states[lo : lo + n] = fill[after][:n]
            else:
                assert isinstance(after, bytes)
                assert states is not None
                states[lo : lo + n] = after
                for byte in set(before):
                    counts[byte] -= before.count(byte)
                for byte in set(after):
                    counts[byte] += after.count(byte)
                ended = after.count(GONE)
            if states is not None and states[0] == states[-1] and page.count == size:
                self._collapse(page, states)
            if ended:
                counts[GONE] = 0
                page.live -= ended
                if page.live == 0 and page.count == size:
                    del self._pages[index]

    # -- attempts

    def attempts(self, seq: int) -> int:
        """How often message `seq` was tried and failed."""
        page = self._pages.get(seq >> self._shift)
        return 0 if page is None or page.attempts is None else page.attempts[seq & self._mask]

    def attempts_of(self, start: int, stop: int) -> bytes:
        """`attempts` of consecutive messages, a byte each; empty if all are 0."""
        found: list[bytes] = []
        some = False
        while start < stop:
            lo = start & self._mask
            n = min(self.size - lo, stop - start)
            page = self._pages.get(start >> self._shift)
            if page is None or page.attempts is None:
                found.append(bytes(n))
            else:
                found.append(bytes(page.attempts[lo : lo + n]))
                some = some or found[-1].count(0) < n
            start += n
        return b"".join(found) if some else b""

    def count_attempt(self, runs: Sequence[Run]) -> None:
        """These were tried once more, and failed."""
        for page, lo, hi in self._slices(runs):
            column = page.attempts
            if column is None:
                column = page.attempts = bytearray(self.size)
            column[lo:hi] = column[lo:hi].translate(_ONE_MORE)

    def reset_attempts(self, runs: Sequence[Run]) -> None:
        """These begin anew."""
        for page, lo, hi in self._slices(runs):
            if page.attempts is not None:
                page.attempts[lo:hi] = bytes(hi - lo)
                if page.attempts.count(0) == self.size:
                    page.attempts = None

    def _slices(self, runs: Sequence[Run]) -> Iterator[tuple[Page, int, int]]:
        """`runs` cut by pages; those that are GONE left out."""
        for start, stop in runs:
            while start < stop:
                lo = start & self._mask
                n = min(self.size - lo, stop - start)
                page = self._pages.get(start >> self._shift)
                if page is not None:
                    yield page, lo, lo + n
                start += n

    def _collapse(self, page: Page, states: bytearray) -> None:
        """One state again, if all bytes agree."""
        if states == self._fill[states[0]]:
            page.state, page.states = states[0], None

    # -- checking

    def validate(self) -> None:
        """Recount everything; AssertionError if it is not as the counts say."""
        counts = [0] * 256
        tail = self.next_seq >> self._shift
        for index, page in self._pages.items():
            base = index << self._shift
            assert page.count == min(self.size, self.next_seq - base) > 0, f"page {index} has {page.count} messages"
            states = page.states if page.states is not None else self._fill[page.state][: page.count]
            assert len(states) == page.count, f"page {index}: {len(states)} bytes for {page.count} messages"
            for byte in set(states):
                assert byte in self._fill, f"page {index}: {byte:#x} ({flags_of(byte)}) is no valid byte"
                counts[byte] += states.count(byte)
            assert page.live == page.count - states.count(GONE), f"page {index}: live={page.live}"
            assert page.live > 0 or (index == tail and page.count < self.size), f"page {index} is GONE and still there"
            assert page.states is None or page.count < self.size or len(set(states)) > 1, f"page {index} is uniform"
            assert page.lanes is None or len(page.lanes) == page.count, f"page {index}: {page.lanes} lanes"
            assert page.attempts is None or len(page.attempts) == self.size, f"page {index}: attempts"
        counts[GONE] = 0
        assert counts == self.counts, "the counts do not agree with the pages"
        assert self.next_seq & self._mask == 0 or tail in self._pages, "the tail page is missing"
