"""A queue as its directory says it is, looked at by somebody who does not own it.

`look` surveys both logs without the lock, `LookedAt` are the files as `QueueStore` finds them, `Replayed` is what
opening would hold, by the same code: snapshot, then puts, then events. Nothing is written, sealed or deleted, and what
opening would do next (return leases of owners that are gone, fail what must not run twice) is not done.

Not here: the public reader (`read_only`), and judging what is found (`verify_index`).

Invariants: the index is surveyed before the log, so every message that an event names was there when the log was read.
What vanishes meanwhile was retired: `FileNotFoundError` (or ESTALE), and the caller looks again.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from copy import copy
from typing import Final, TypeVar

from daskqueue_core.batch import Run
from daskqueue_core.contents import Ride
from daskqueue_core.events import Event, Expired, Put
from daskqueue_core.queue import TransientQueue
from daskqueue_core.runs import clean, difference
from daskqueue_core.states import MessageState
from daskqueue_storage.directory import uuid_text
from daskqueue_storage.files import Files
from daskqueue_storage.keydir import DiskPayloads, Shelf
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.recovery import Survey, survey_beside_writer
from daskqueue_storage.report import Damage
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.store import QueueStore
from daskqueue_storage.turn import Turn

__all__ = ["LookedAt", "Replayed", "again_while_it_vanishes", "cut", "has_vanished", "look"]

T = TypeVar("T")
_PATIENCE: Final = 10
_UNFINISHED: Final = (MessageState.SCHEDULED, MessageState.READY, MessageState.DELIVERED)


def look(files: Files, root: str, uuid: bytes) -> dict[str, Survey]:
    """Both logs at about one moment."""
    before = set(files.list_dir(f"{root}/log"))
    index = survey_beside_writer(files, root, "index", uuid)
    log = survey_beside_writer(files, root, "log", uuid)
    gone = before.difference(files.list_dir(f"{root}/log"))
    if gone:  # the index that was read may still name messages that stood there
        raise FileNotFoundError(errno.ENOENT, "retired while it was read", f"{root}/log/{min(gone)}")
    return {"log": log, "index": index}


def has_vanished(problem: OSError) -> bool:
    """Whether a file is gone that was there: its writer let it go."""
    return isinstance(problem, FileNotFoundError) or problem.errno == errno.ESTALE


def again_while_it_vanishes(action: Callable[[bool], T]) -> T:
    """`action`, from the beginning as long as a writer takes files away under it; it is told which try is the last."""
    for tries_left in reversed(range(_PATIENCE)):
        try:
            return action(not tries_left)
        except OSError as problem:
            if not has_vanished(problem):
                raise
            last = problem
    raise OSError(errno.EBUSY, "its writer deletes files faster than they can be read", last.filename) from last


def cut(info: SegmentInfo, valid: int, last_rno: int) -> SegmentInfo:
    """A segment as it was when it ended at `valid`."""
    shorter = copy(info)
    shorter.valid, shorter.last_rno, shorter.index = valid, last_rno, None
    shorter.closed = info.closed and last_rno == info.last_rno
    return shorter


class LookedAt(QueueStore):
    """The files of a queue, of which nothing may be changed. `log`, `index`: other segments than those surveyed."""

    def __init__(
        self,
        files: Files,
        root: str,
        uuid: bytes,
        found: dict[str, Survey],
        complaints: Sequence[str] = (),
        *,
        log: Sequence[SegmentInfo] | None = None,
        index: Sequence[SegmentInfo] | None = None,
    ) -> None:
        self.files = files
        self.root = root
        self.uuid = uuid
        self._lease = None
        self._on_damage = "report"
        self._began = files.boot_ns()
        self._complaints = list(complaints)
        self._found = found
        self.damaged: list[Damage] = []
        self.snapshots: list[tuple[int, int]] = []
        self.shelf = Shelf(files, root, self.damaged)
        for info in found["log"].segments if log is None else log:
            self.shelf.add(info)
            info.index = None
        self.index_segments = list(found["index"].segments if index is None else index)
        self.by_number = {info.segno: info for info in self.shelf.segments}
        self.snapshot = self._newest_snapshot()

    @property
    def lacks_segments(self) -> bool:
        """Whether the snapshot names segments that are not there: most often because they have ended since."""
        found = self.snapshot
        if found is None:
            return False
        if any(live and base not in found.places for base, _, _, _, live, _ in found.state.entries):
            return True
        return any(None in row.segments for row in found.singles)


class Replayed(DurableQueue):
    """What the files of a queue say. To be looked at: nothing of it is recorded."""

    def __init__(self, store: LookedAt, clock: Callable[[], int]) -> None:
        self._store = store
        self._turn = Turn()
        self._maintain(sys.maxsize)
        self._closed = False
        self._stop_timer = lambda: None
        self._grown = 0
        TransientQueue.__init__(
            self,
            clock=clock,
            uuid=uuid_text(store.uuid),
            epoch=max((info.epoch for info in store.index_segments), default=0),
            result_ttl=None,
            result_max_bytes=None,
        )
        self._payloads: DiskPayloads = DiskPayloads(store.shelf)
        self._restore()
        self._ledger.commit(self._ledger.pages.next_seq)
        self._let_time_pass()
        self.report = store._report()

    def without_payload(self) -> list[Run]:
        """Messages that have not ended and have no record: it was lost, or retired since the index was read."""
        unfinished = [run for state in _UNFINISHED for run in self._ledger.runs_in(state)]
        there = [(needed.base, needed.stop) for needed in self._payloads.needed()]
        own = [(seq, seq + 1) for seq, again in self._payloads._again.items() if again.own_bytes is not None]
        return difference(clean(unfinished), clean([*there, *own]))

    def _let_time_pass(self) -> None:
        """What is due is ready and what is over has expired. Not leases: their heartbeats are not on disk."""
        ledger, now = self._ledger, self._clock()
        while events := [event for event in ledger.decide_due(now) if isinstance(event, Expired)]:
            for event in events:
                self._take(event, None)

    def _record(self, event: Event, ride: Ride) -> None:
        """Nowhere."""

    def _commit(self, event: Put) -> None:
        """There is no disk to wait for."""

    def _look_after(self) -> None:
        """Nothing of the directory is ours."""

    def close(self) -> None:
        """Let go of the files."""
        self._closed = True
        self._store.let_go()
        TransientQueue.close(self)
