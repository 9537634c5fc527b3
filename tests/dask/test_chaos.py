"""Chaos: processes get real signals and lose connections while they work; what that may do is what the promises say.

A round is a cluster of processes, a program with a client of its own that submits and listens, and a fault at a random
moment. Three witnesses are outside of it: the executions (a line each, with the process and the time), what the program
has heard (a line an outcome), and what was accepted. Then, whatever happened:

- every future ends once, with its value; with `QueueLost` only where the scheduler is gone;
- nothing begins to run after its outcome was heard, nor in a next cluster what was heard in the one before;
- what ran again ran before on a process that was killed, and its end had not been heard: never more than it had leased.
  On a transient pool also what was unfinished when its host was lost;
- durable: all that was accepted was run, and is there by key, in the next cluster too;
- nobody waits longer than ten times the goal: 1 s after a consumer, 5 s after a host, counted from when it is known;
- where nobody was lost, but only time or connections, nothing runs again.

Here one round of each row of the table, the quick ones by default. `DASKQUEUE_CHAOS_ROUNDS=500 pytest -m slow -s
tests/dask/test_chaos.py` (the session `chaos`) draws so many, and prints what they showed; `DASKQUEUE_CHAOS_SEED=7`
repeats the one of seed 7.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daskqueue import ConsumerPool, QueueLost, QueuePool
from daskqueue.testing import Member, Nursery, Oracle, ProcessCluster

GOAL_S = {"consumer": 1.0, "programs": 1.0}  # 5 s for everybody else
PATIENCE = 10
LEASES = 3  # of a slot at one time: the one that runs, the next, and what was reported and not yet answered
ROUNDS = int(os.environ.get("DASKQUEUE_CHAOS_ROUNDS", "12"))
SEED = os.environ.get("DASKQUEUE_CHAOS_SEED")
LOST = ("scheduler", "everything")
AT_A_POOL = ("consumer", "host", "both")
ENDING = ("kill", "terminate")
BY_PROXY = ("cut", "stall")
SEEN_S = 25.0  # until Dask gives a process up that says nothing for ten seconds

# Workers and clients give a dead scheduler up after 3 s instead of 30; nannies fork: seconds less a round.
ENV = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s",
    "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "fork",
    "DASK_DASKQUEUE__CLIENT_GRACE": "1s",
}
WORKER_TTL = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}  # where processes hang


@dataclass(frozen=True)
class Plan:
    """A round."""

    seed: int
    who: Any
    how: str
    durable: bool
    named: bool = False
    nanny: bool = False
    n_queues: int = 1
    tasks: int = 300
    batch_size: int | None = 8
    moment: float = 0.3
    """The part of the tasks that has ended when it happens."""
    slowest_ms: int = 6

    @property
    def goal(self) -> float:
        """Seconds in which something must go on."""
        return GOAL_S.get(self.who, 5.0)

    @property
    def deadline(self) -> float:
        """Seconds in which it must have, counted from when it can be known."""
        return PATIENCE * self.goal + {"freeze": 2.5, "stall": 2.5, "hang": SEEN_S}.get(self.how, 0.0)

    @property
    def ends(self) -> bool:
        """Whether processes are lost; else only time is."""
        return self.how in (*ENDING, "hang")


def draw(seed: int) -> Plan:
    """The round of a seed."""
    chance = random.Random(seed)
    who = chance.choice(
        ["consumer", "consumer", "host", "host", "both", "workers", "scheduler", "programs", "everything"]
    )
    ways = ["kill", "kill", "kill", "terminate", "freeze"]
    if who in AT_A_POOL:
        ways += ["cut", "stall", "hang"]
    how = chance.choice(ways)
    return Plan(
        seed=seed,
        who=who,
        how=how,
        durable=chance.random() < 0.6,
        named=chance.random() < 0.5,
        nanny=chance.random() < 0.4 and how not in BY_PROXY,
        n_queues=chance.choice([1, 1, 2]),
        tasks=chance.randrange(300, 2000),
        batch_size=chance.choice([None, 4, 16]),
        moment=chance.uniform(0.02, 0.8),
        slowest_ms=chance.choice([1, 4, 8]),
    )


# --------------------------------------------------------------------------------------------- the program and its work


def work(n: int, ran: Oracle, slowest_ms: int) -> int:
    """A task: it says that it runs, and takes a while."""
    ran.mark(n, os.getpid(), time.time())
    threading.Event().wait(n * 7919 % (slowest_ms * 1000) / 1e6)
    return 3 * n


def heard_of(heard: Oracle, n: int, future: Future[int]) -> None:
    """A future has ended."""
    error = future.exception()
    heard.mark("end", n, time.time(), future.result() if error is None else type(error).__name__)


def submit_all(client: Any, plan: Plan, where: str, ran: Oracle, heard: Oracle) -> None:
    """What the program does."""
    options: dict[str, Any] = {"durability": "durable", "dirpath": where} if plan.durable else {}
    name = "chaos" if plan.named and not plan.durable else None
    pool = QueuePool(client, plan.n_queues, name=name, **options)
    ConsumerPool(client, pool, batch_size=plan.batch_size).start()
    heard.mark("pool", pool.name)
    futures: list[Future[int]] = []
    told = threading.Semaphore(0)  # callbacks run in a thread of their own, a little after the futures end

    def ended(n: int, future: Future[int]) -> None:
        heard_of(heard, n, future)
        told.release()

    def wait_for_callbacks() -> None:
        for n in range(len(futures)):
            assert told.acquire(timeout=PATIENCE * 5.0), f"{n} callbacks of {len(futures)} futures were called"

    try:
        for n in range(plan.tasks):
            futures.append(pool.options(key=f"k{n}").submit(work, n, ran, plan.slowest_ms))
            futures[-1].add_done_callback(partial(ended, n))
            if n % 40 == 39 or n == plan.tasks - 1:
                pool.flush()
                heard.mark("accepted", n + 1)
        for future in futures:
            future.exception(timeout=PATIENCE * 5.0 + plan.tasks * plan.slowest_ms / 1000)
        pool.join(timeout=PATIENCE * 5.0)
        wait_for_callbacks()
        heard.mark("joined")
        values = pool.results()
        assert list(values.values()) == [3 * n for n in range(plan.tasks)], "by key, in submission order"
        until = time.monotonic() + PATIENCE * SEEN_S
        while not struck_file(where).exists() and time.monotonic() < until:  # so that there is a pool to strike at
            threading.Event().wait(0.01)
    except (QueueLost, RuntimeError) as error:  # a RuntimeError where the pool is closed with its client
        if plan.who not in LOST:
            raise
        for future in futures:
            future.exception(timeout=PATIENCE * 5.0)
        wait_for_callbacks()
        heard.mark("lost", type(error).__name__)
        return
    if plan.who not in LOST:
        pool.shutdown()


def struck_file(where: str) -> Path:
    """Is there when it has happened."""
    return Path(where).with_name("struck")


# -------------------------------------------------------------------------------------------------------- the witnesses


@dataclass
class Evidence:
    """What the witnesses say."""

    ran: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[int, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    accepted: int = 0
    pool: str = ""
    said: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, ran: Oracle, heard: Oracle) -> Evidence:
        """Read them."""
        self = cls()
        for line in ran.lines():
            n, pid, at = line.split()
            self.ran[int(n)].append((int(pid), float(at)))
        for line in heard.lines():
            what, *words = line.split()
            self.said.add(what)
            if what == "end":
                self.ended[int(words[0])].append((float(words[1]), words[2]))
            elif what == "accepted":
                self.accepted = int(words[0])
            elif what == "pool":
                self.pool = words[0]
        return self


@dataclass
class Findings:
    """What a round showed."""

    killed: int = 0
    again: int = 0
    next_outcome: float | None = None
    last_again: float | None = None


def expect(plan: Plan, evidence: Evidence, at: float, dead: set[int], all_of: int) -> Findings:
    """What must be true whatever happened; `all_of`: the first so many tasks must have run."""
    missing = [n for n in range(all_of) if n not in evidence.ran]
    assert not missing, f"never executed: {missing[:20]} and so on, {len(missing)}"
    for n, ends in evidence.ended.items():
        assert len(ends) == 1, f"the future of task {n} ended {len(ends)} times: {ends}"
        heard_at, value = ends[0]
        if value == str(3 * n):
            late = [run for run in evidence.ran[n] if run[1] > heard_at]
            if plan.how == "hang":  # it wakes up in the middle of a lease that others have worked off
                late = [run for run in late if run[0] not in dead]
            if plan.how in ("terminate", "hang") and any(
                pid in dead for pid, began in evidence.ran[n] if began <= heard_at
            ):
                # what a leaving process had begun was leased again when its success came: that lease stands
                late = [run for run in late if run[1] > heard_at + plan.deadline]
            assert not late, f"task {n} began at {late} after its outcome was heard at {heard_at}"
        else:
            may_be_lost = plan.who in LOST and plan.ends
            assert (may_be_lost, value) == (True, "QueueLost"), f"task {n} ended with {value}"
    again = {n: sorted(runs, key=lambda run: run[1]) for n, runs in evidence.ran.items() if len(runs) > 1}
    for n, runs in again.items():
        assert runs[-1][1] > at, f"task {n} ran twice before anything happened: {runs}"
        on_living = [pid for pid, _ in runs[:-1] if pid not in dead]
        if plan.how == "hang" and any(pid in dead for pid, _ in runs):
            on_living = []  # it may have woken up and run it last
        if on_living and not (not plan.durable and plan.who in ("host", "both", "workers") and plan.ends):
            pytest.fail(f"task {n} ran again, but it had run on {on_living}, which lived on; {dead} did not; {runs}")
    if plan.batch_size is not None and (plan.durable or plan.who == "consumer"):
        assert len(again) <= LEASES * plan.batch_size * len(dead), f"{len(again)} ran again: more than was leased"
    after = [end for ends in evidence.ended.values() for end, value in ends if end > at and value.isdigit()]
    findings = Findings(again=len(again), next_outcome=min(after) - at if after else None)
    findings.last_again = max((runs[-1][1] for runs in again.values()), default=at) - at if again else None
    if after and plan.who not in LOST:
        assert min(after) - at < plan.deadline
    return findings


# -------------------------------------------------------------------------------------------------------------- a round


def play(plan: Plan, folder: Path, nursery: Nursery, eventually: Callable[..., Any]) -> Findings:
    """One round."""
    folder.mkdir()
    ran, heard, where = Oracle(folder / "ran"), Oracle(folder / "heard"), str(folder / "pool")
    chance = random.Random(plan.seed)
    workers = 2 if plan.nanny and plan.n_queues == 1 else 3  # one at least hosts no queue
    options: dict[str, Any] = {"nursery": nursery, "env": ENV}
    if plan.how == "hang":
        options["env"] = {**ENV, **WORKER_TTL}
    with ProcessCluster(0, nanny=plan.nanny, folder=folder / "cluster", **options) as cluster:
        cluster.add(workers, proxy=plan.how in BY_PROXY)
        program = cluster.run(submit_all, plan, where, ran, heard)
        enough = int(plan.moment * plan.tasks)

        def so_far() -> bool:
            assert program.alive, program.log
            return sum(line.startswith("end ") for line in heard.lines()) > enough

        eventually(so_far, 60)
        before = Evidence.of(ran, heard)
        index = chance.randrange(plan.n_queues)
        struck = eventually(lambda: cluster.find(plan.who, before.pool, index))
        dead, at = strike(plan, cluster, struck, chance)
        struck_file(where).touch()
        if not plan.ends:
            dead = set()
        elif plan.who in ("both", "workers") and not (plan.nanny and plan.how == "kill"):
            cluster.add(2, wait=False)  # perhaps nobody is left

        if not plan.ends or plan.who not in (*LOST, "programs"):
            code = program.wait(plan.deadline + 2 * PATIENCE * 5.0)
            assert code == 0, f"the program ended with {code}: {program.log}"
            evidence = Evidence.of(ran, heard)
            assert "joined" in evidence.said
            assert len(evidence.ended) == plan.tasks
            return replace_killed(expect(plan, evidence, at, dead, plan.tasks), dead)
        if plan.who == "programs":
            return replace_killed(client_lost(plan, cluster, ran, heard, at, eventually), dead)
        if plan.who == "scheduler":
            code = program.wait(PATIENCE * 5.0)
            assert code == 0, f"the program ended with {code}: {program.log}"
            for worker in cluster.workers:
                assert worker.wait(PATIENCE * 5.0) is not None, f"{worker} outlives its scheduler"
            assert Evidence.of(ran, heard).said & {"lost", "joined"}, "it is done, or knows that it will not be"
    lost = time.time()
    first = Evidence.of(ran, heard)
    if not plan.durable:
        return replace_killed(expect(plan, first, at, dead, 0), dead)
    with ProcessCluster(2, folder=folder / "next", **options) as cluster:
        pool = QueuePool.resume(cluster.client, where)
        assert all(found.whole for found in pool.recovery())
        known_by_key(plan, cluster, pool, first.accepted)
        pool.shutdown()
    evidence = Evidence.of(ran, heard)
    findings = expect(plan, evidence, at, dead, first.accepted)
    later = [run[1] for runs in evidence.ran.values() for run in runs if run[1] > lost]
    findings.next_outcome = min(later) - lost if later else None
    return replace_killed(findings, dead)


def replace_killed(findings: Findings, dead: set[int]) -> Findings:
    """The same, with how many were killed."""
    return replace(findings, killed=len(dead))


def strike(plan: Plan, cluster: ProcessCluster, struck: list[Member], chance: random.Random) -> tuple[set[int], float]:
    """Do it; returns which processes it ends, and when it was."""
    dead = {pid for member in struck if (pid := member.pid) is not None}
    if plan.who == "scheduler":  # its workers end with it
        dead |= {pid for worker in cluster.workers if (pid := worker.pid) is not None}
    whole = plan.who == "everything"
    at = time.time()
    for member in struck:
        if plan.how == "kill":
            member.kill(nanny=whole)
        elif plan.how == "terminate":
            member.terminate()
        elif plan.how == "cut":
            cluster.proxy_of(member).drop()
        elif plan.how == "stall":
            cluster.proxy_of(member).stall()
        else:
            member.freeze(nanny=whole)
    if plan.how == "hang":
        wait_until_given_up(cluster, struck)
    if plan.how in ("freeze", "stall", "hang"):
        threading.Event().wait(chance.uniform(0.1, 2.0))
        for member in struck:
            if plan.how == "stall":
                cluster.proxy_of(member).restore()
            else:
                member.go_on(nanny=whole)
    if whole and plan.how == "terminate":
        for member in struck:
            assert member.wait(PATIENCE * 5.0) is not None, f"{member} does not end"
    return dead, at


def wait_until_given_up(cluster: ProcessCluster, struck: list[Member]) -> None:
    """Until Dask believes that they are dead. Their nannies may bring others of their names."""
    names, deadline = {member.name for member in struck}, time.monotonic() + PATIENCE * SEEN_S
    addresses = {address for address, worker in members(cluster).items() if str(worker["name"]) in names}
    while addresses & members(cluster).keys():
        assert time.monotonic() < deadline, f"{struck} are still members of the cluster"
        threading.Event().wait(0.1)


def members(cluster: ProcessCluster) -> dict[str, Any]:
    """The workers that the scheduler has, by address."""
    workers: dict[str, Any] = cluster.client.scheduler_info(n_workers=-1)["workers"]
    return workers


def client_lost(
    plan: Plan, cluster: ProcessCluster, ran: Oracle, heard: Oracle, at: float, eventually: Callable[..., Any]
) -> Findings:
    """Named and durable pools go on, and another client reads; one without a name ends after the grace."""
    evidence = Evidence.of(ran, heard)
    if not (plan.named or plan.durable):
        eventually(lambda: evidence.pool not in cluster.client.run_on_scheduler(_pools), PATIENCE * 5.0)
        return expect(plan, Evidence.of(ran, heard), at, set(), 0)
    pool = QueuePool.attach(cluster.client, evidence.pool)
    known_by_key(plan, cluster, pool, evidence.accepted, start=False)
    pool.shutdown()
    return expect(plan, Evidence.of(ran, heard), at, set(), evidence.accepted)


def known_by_key(plan: Plan, cluster: ProcessCluster, pool: QueuePool, accepted: int, start: bool = True) -> None:
    """All that was accepted is done, and can be read by key."""
    if start:
        ConsumerPool(cluster.client, pool).start()
    pool.join(timeout=PATIENCE * 5.0)
    values = pool.results([f"k{n}" for n in range(accepted)])
    assert values == {f"k{n}": 3 * n for n in range(accepted)}
    assert not pool.failures()


def _pools(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.plugins["daskqueue"].directory.pools)


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where all processes of this module come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


ROWS = {
    "durable, a consumer is killed": Plan(1, "consumer", "kill", True),
    "durable, the host is killed": Plan(2, "host", "kill", True, n_queues=2),
    "durable, the host and a consumer with nannies": Plan(3, "both", "kill", True, nanny=True),
    "durable, the host is terminated": Plan(4, "host", "terminate", True),
    "durable, the client is killed": Plan(5, "programs", "kill", True),
    "durable, everything is killed": Plan(6, "everything", "kill", True),
    "durable, everything is terminated": Plan(19, "everything", "terminate", True),
    "transient, a consumer is killed": Plan(7, "consumer", "kill", False),
    "transient, the host is killed": Plan(8, "host", "kill", False),
    "durable, the connections of the host break": Plan(17, "host", "cut", True),
    "transient, the connections of both stand still": Plan(18, "both", "stall", False),
}
# They wait for Dask to give a scheduler up, or for what hangs.
LONG_ROWS = {
    "durable, the scheduler is killed": Plan(9, "scheduler", "kill", True),
    "durable, the host hangs for a while": Plan(10, "host", "freeze", True),
    "durable, the host hangs and is given up": Plan(14, "host", "hang", True),
    "transient, the host hangs and is given up": Plan(15, "host", "hang", False),
    "durable, a consumer hangs and is given up": Plan(16, "consumer", "hang", True),
    "transient, the scheduler is killed": Plan(11, "scheduler", "kill", False),
    "transient, the client of a named pool is killed": Plan(12, "programs", "kill", False, named=True),
    "transient, the client of an unnamed pool is killed": Plan(13, "programs", "kill", False),
}


@pytest.mark.parametrize("row", [*ROWS, *(pytest.param(row, marks=pytest.mark.slow) for row in LONG_ROWS)])
def test_a_row_of_the_table(row: str, tmp_path: Path, nursery: Nursery, eventually: Callable[..., Any]) -> None:
    """One round: what is lost is only what may be."""
    play({**ROWS, **LONG_ROWS}[row], tmp_path / "round", nursery, eventually)


@pytest.mark.slow
@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_rounds(tmp_path: Path, nursery: Nursery, eventually: Callable[..., Any]) -> None:
    """Many rounds of any kind. A failure names its seed."""
    first = random.SystemRandom().randrange(1 << 30)
    seeds = [int(SEED)] if SEED else range(first, first + ROUNDS)
    found: dict[tuple[str, str], list[Findings]] = defaultdict(list)
    failures = []
    tasks = 0
    for seed in seeds:
        plan = draw(seed)
        tasks += plan.tasks
        folder = tmp_path / str(seed)
        began = time.monotonic()
        try:
            findings = play(plan, folder, nursery, eventually)
        except (Exception, pytest.fail.Exception) as error:
            failures.append(f"DASKQUEUE_CHAOS_SEED={seed}, {plan}, see {folder}: {type(error).__name__}: {error}")
            _print(f"FAILED {failures[-1]}")
        else:
            found[plan.who, plan.how].append(findings)
            _print(f"{seed} {plan.how} {plan.who}: {findings}, {time.monotonic() - began:.1f} s")
    everything = [each for many in found.values() for each in many]
    _print(f"{len(seeds)} rounds, {sum(each.killed for each in everything)} processes ended, {tasks} tasks")
    _print(f"{sum(each.again for each in everything)} tasks ran again; seconds until ...")
    for (who, how), many in sorted(found.items()):
        next_ones = [each.next_outcome for each in many if each.next_outcome is not None]
        last_ones = [each.last_again for each in many if each.last_again is not None]
        _print(f"  {how:9} {who:10} {len(many):3} rounds; next {_spread(next_ones)}; last repeat {_spread(last_ones)}")
    assert not failures, "\n\n".join(failures)


def _spread(numbers: list[float]) -> str:
    if not numbers:
        return "-"
    ordered = sorted(numbers)
    tenth = ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]
    return f"median {statistics.median(ordered):.2f}, 90 % {tenth:.2f}, longest {ordered[-1]:.2f}"


def _print(line: str) -> None:
    """To the terminal with `-s`, else with a failure."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
