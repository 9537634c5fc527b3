"""Crash at every operation, in three ways, and again during the recovery from that.

Few seeds by default, many if DASKQUEUE_STORAGE_ROUNDS asks for it.
"""

import random
from copy import deepcopy

import pytest

from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.testing import CRASH_MODES, LogTrial, SimCrash, SimFiles

OPTIONS = {"segment_bytes": 4096, "lock_ttl": 10.0, "wait": 10.0}

pytestmark = pytest.mark.timeout(1800)  # with many rounds


def everyday_life(files: SimFiles, trial: LogTrial) -> None:
    """Open, append, roll, sync, truncate, close; twice."""
    for _ in range(2):
        with SegmentedLog("/log", files=files, sync=trial.sync, **OPTIONS) as log:
            trial.append_many(log, [8, 8, 8])
            trial.append_many(log, [100])
            trial.append_many(log, [600, 20, 700])
            log.sync()
            trial.synced()
            trial.append_many(log, [2000])
            last = trial.append_many(log, [900] * 3)
            trial.append_many(log, [9])
            trial.truncate_before(log, last.start)
            trial.append_many(log, [1500, 1500])
        trial.synced()


def interrupted(seed: int, sync: str, crash_at: int) -> tuple[SimFiles, LogTrial]:
    """The scenario, up to its death."""
    files, trial = SimFiles(seed=seed), LogTrial(sync)
    files.crash_at(crash_at)
    with pytest.raises(SimCrash):
        everyday_life(files, trial)
    return files, trial


def operations(sync: str) -> int:
    """How many operations the scenario takes when nothing happens."""
    files, trial = SimFiles(), LogTrial(sync)
    everyday_life(files, trial)
    return files.ops


def segments_of(files: SimFiles) -> dict[str, bytes]:
    """The segments, byte by byte."""
    return {path: data for path, data in files.tree().items() if path.endswith(".log")}


def reopened(files: SimFiles, trial: LogTrial, mode: str) -> None:
    """Recover, check, go on working, recover once more."""
    before = segments_of(files)
    with SegmentedLog("/log", files=files, sync=trial.sync, **OPTIONS) as log:
        found = trial.check(log, power_lost=mode != "kill")
        trial.append_many(log, [50, 50])
    trial.synced()
    after = segments_of(files)
    assert all(after[path] == data for path, data in before.items() if path in after), "recovery changed a segment"
    with SegmentedLog("/log", files=files, sync=trial.sync, **OPTIONS) as log:
        assert log.report.clean
        assert trial.check(log)[: len(found)] == found


@pytest.mark.parametrize("sync", ["batch", "none"])
@pytest.mark.parametrize("mode", CRASH_MODES)
def test_crash_at_every_operation(mode: str, sync: str, rounds: int) -> None:
    """Nothing acknowledged is lost, nothing wrong is read, no offset comes twice, and the log goes on."""
    for at in range(1, operations(sync) + 1):
        files, trial = interrupted(at, sync, at)
        for seed in range(1 if mode == "kill" else rounds):
            reopened(files.crash(mode, seed), deepcopy(trial), mode)


@pytest.mark.parametrize("mode", CRASH_MODES)
def test_crash_again_during_recovery(mode: str, rounds: int) -> None:
    """At every operation of the recovery too, and in another way: recovery can be repeated."""
    chance = random.Random(7)
    total = operations("batch")
    for at in chance.sample(range(1, total + 1), min(total, 6 * rounds)):
        files, before = interrupted(at, "batch", at)
        for second in range(1, 40):
            trial = deepcopy(before)
            first = files.crash(mode, at)
            first.crash_at(second)
            try:
                SegmentedLog("/log", files=first, **OPTIONS)
            except SimCrash:
                again = chance.choice(CRASH_MODES)
                reopened(first.crash(again, second), trial, "kill" if mode == again == "kill" else "power")
            else:
                break
        else:
            raise AssertionError("a recovery of 40 operations")


def test_a_killed_writers_cache_is_made_durable_before_it_is_believed() -> None:
    """Killed, recovered and read, then the power fails: what was read is still there."""
    for sync in ("none", "batch"):
        for at in range(1, operations(sync) + 1):
            files, trial = interrupted(at, sync, at)
            survivor = files.crash("kill")
            with SegmentedLog("/log", files=survivor, sync=sync, **OPTIONS) as log:
                seen = trial.check(log)
                after_power_loss = survivor.crash("chaos", at)
            with SegmentedLog("/log", files=after_power_loss, sync=sync, **OPTIONS) as log:
                assert list(log.scan())[: len(seen)] == seen


def test_names_of_a_killed_writer_are_durable_before_its_successor_relies_on_them() -> None:
    """Killed before its segment's name was synced, then power loss while the successor begins: nothing is missing."""
    files = SimFiles()
    SegmentedLog("/log", files=files, **OPTIONS).append(b"00000000")
    created = next(at for at, entry in enumerate(files.history, start=1) if entry.startswith("create /log/log/"))
    for at in range(created + 1, created + 4):  # header, sync, and the sync of the directory that does not happen
        for second in range(1, 20):
            for seed in range(12):
                files = SimFiles()
                files.crash_at(at)
                with pytest.raises(SimCrash):
                    SegmentedLog("/log", files=files, **OPTIONS).append(b"00000000")
                successor = files.crash("kill")
                successor.crash_at(second)
                try:
                    SegmentedLog("/log", files=successor, **OPTIONS)
                except SimCrash:
                    with SegmentedLog("/log", files=successor.crash("chaos", seed), **OPTIONS) as log:
                        assert log.report.whole, log.report
