"""The log against a dictionary, on random walks that include crashes, failures, usurpers and damage."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daskqueue_storage.errors import DiskFullError, FencedError, StorageError, WriterFailedError
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.testing import LogTrial, SimCrash, SimFiles
from daskqueue_storage.verify import verify

OPTIONS = {"segment_bytes": 4096, "lock_ttl": 10.0, "wait": 10.0}
sizes = st.one_of(
    st.lists(st.just(8), max_size=40),
    st.lists(st.integers(8, 700), max_size=6),
    st.lists(st.integers(1000, 7000), min_size=1, max_size=2),
)


class LogMachine(RuleBasedStateMachine):
    """Chooses what happens next. `log` is None between a crash and the next opening."""

    log: SegmentedLog | None
    reader: SegmentedLog | None

    @initialize(sync=st.sampled_from(["batch", "batch", "none", 1.0]), seed=st.integers(0, 2**16))
    def begin(self, sync: str | float, seed: int) -> None:
        """An empty directory."""
        self.files = SimFiles(seed=seed)
        self.trial = LogTrial(sync)
        self.log = None
        self.reader = None
        self.damaged = False
        self.open()

    def open(self, *, power_lost: bool = False) -> None:
        """Open and compare."""
        self.log = SegmentedLog("/log", files=self.files, sync=self.trial.sync, **OPTIONS)
        self.trial.check(self.log, power_lost=power_lost, damaged=self.damaged)

    @rule(sizes=sizes)
    def append(self, sizes: list[int]) -> None:
        """Some messages."""
        self.trial.append_many(self.log, sizes)

    @rule()
    def sync(self) -> None:
        """All of it is durable."""
        self.log.sync()
        self.trial.synced()

    @rule(share=st.floats(0, 1))
    def truncate(self, share: float) -> None:
        """Let a part go."""
        stats = self.log.stats()
        offset = stats.first + int(share * (stats.end - stats.first))
        self.trial.truncate_before(self.log, offset)

    @rule()
    def close_and_open(self) -> None:
        """Cleanly."""
        self.log.close()
        self.trial.synced()
        self.open()
        assert self.log.report.clean

    @rule(mode=st.sampled_from(["kill", "ordered", "chaos"]), seed=st.integers(0, 99))
    def crash(self, mode: str, seed: int) -> None:
        """Between two operations."""
        self.forget(self.files.crash(mode, seed))
        self.open(power_lost=mode != "kill")

    @rule(
        sizes=sizes,
        within=st.integers(1, 12),
        mode=st.sampled_from(["kill", "ordered", "chaos"]),
        again=st.integers(0, 30),
        seed=st.integers(0, 99),
    )
    def crash_in_the_middle(self, sizes: list[int], within: int, mode: str, again: int, seed: int) -> None:
        """Of appending or closing, and perhaps of the recovery from that."""
        self.files.crash_at(self.files.ops + within)
        try:
            self.trial.append_many(self.log, sizes)
            self.log.close()
            self.trial.synced()
        except SimCrash:
            pass
        self.forget(self.files.crash(mode, seed))
        self.files.crash_at(self.files.ops + again if again else None)
        power_lost = mode != "kill"
        try:
            self.open(power_lost=power_lost)
            self.files.crash_at(None)
        except SimCrash:
            self.forget(self.files.crash("chaos", seed))
            self.open(power_lost=True)

    @rule(
        sizes=sizes, within=st.integers(1, 6), code=st.sampled_from([28, 27, 5]), partial=st.none() | st.integers(0, 99)
    )
    def fail(self, sizes: list[int], within: int, code: int, partial: int | None) -> None:
        """One operation fails; a full disk is survived, a broken one needs a new opening."""
        self.files.fail(self.files.ops + within, code, partial=partial)
        self.append_or_reopen(sizes)
        self.files._plans.clear()

    def append_or_reopen(self, sizes: list[int]) -> None:
        """A full disk is only full; what is worse needs another opening, which may fail once as well."""
        try:
            self.trial.append_many(self.log, sizes)
        except DiskFullError:
            pass
        except WriterFailedError:
            self.log.close()
            self.files.free = None
            try:
                self.open(power_lost=True)
            except (StorageError, OSError):
                self.open(power_lost=True)

    @rule(room=st.integers(0, 3000), sizes=sizes)
    def full_disk(self, room: int, sizes: list[int]) -> None:
        """Little room, then room again."""
        self.files.free = sum(map(len, self.files.tree().values())) + room
        self.append_or_reopen(sizes)
        self.files.free = None

    @rule(seconds=st.sampled_from([1.0, 5.0, 8.9, 9.1, 60.0]), asleep=st.booleans())
    def time_passes(self, seconds: float, asleep: bool) -> None:
        """With or without this process."""
        (self.files.suspend if asleep else self.files.advance)(seconds)

    @rule(sizes=sizes)
    def usurper(self, sizes: list[int]) -> None:
        """Away for too long, another host takes over; the old writer is fenced and changes nothing."""
        other = self.files.also(host="elsewhere")
        self.files.suspend(30)
        log = SegmentedLog("/log", files=other, sync=self.trial.sync, **OPTIONS)
        # Another host sees what is synced: for the laxer policies that is like a power cut.
        found = self.trial.check(log, power_lost=True, damaged=self.damaged)
        late = b"%08d fenced" % self.files.ops
        self.trial.attempted[late] = len(self.trial.batches)
        self.trial.batches.append([late])
        self.trial.append_many(log, sizes)
        with pytest.raises(FencedError):
            self.log.append(late)
        self.log.close()
        assert [payload for _, payload in log.scan()][: len(found)] == [payload for _, payload in found]
        self.files, self.log, self.reader = other, log, None

    @rule(which=st.randoms(use_true_random=False))
    def flip_a_bit(self, which: random.Random) -> None:
        """In a segment that nobody writes any more."""
        growing = max((path for path in self.files.tree() if path.endswith(".log")), default="")
        old = [path for path in sorted(self.files.tree()) if path.endswith(".log") and path != growing]
        if old:
            path = which.choice(old)
            data = bytearray(self.files.tree()[path])
            if data:
                bit = which.randrange(8 * len(data))
                data[bit // 8] ^= 1 << bit % 8
                self.files.edit(path, bytes(data))
                self.damaged = True

    @precondition(lambda self: self.reader is None)
    @rule()
    def begin_to_read(self) -> None:
        """A reader beside the writer."""
        if "FORMAT" in self.files.list_dir("/log"):
            self.reader = SegmentedLog("/log", mode="ro", files=self.files)

    def forget(self, files: SimFiles) -> None:
        """Another process from here on."""
        self.files, self.log, self.reader = files, None, None

    @invariant()
    def holds(self) -> None:
        """The writer sees what it must, a reader beside it the same, and verify has nothing to complain about."""
        if getattr(self, "log", None) is None:
            return
        found = self.trial.check(self.log, damaged=self.damaged or self.trial.sync != "batch")
        # Only damage to both copies of a seal can bring back what a replaced writer wrote.
        assert self.damaged or not [payload for _, payload in found if b"fenced" in payload]
        if self.reader is not None:
            seen = self.trial.check(self.reader, damaged=self.damaged or self.trial.sync != "batch")
            assert self.damaged or seen == found
        if not self.damaged and self.trial.sync == "batch":
            report = verify("/log", files=self.files)
            assert report.whole
            assert report.messages >= len(found)


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=settings().max_examples // 2, deadline=None)
TestLogMachine.pytestmark = [pytest.mark.timeout(900)]  # thousands of examples under the profile "properties"
