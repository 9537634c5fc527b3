"""The interleavings of the semantics that must come out right, over the simulated network.

Each `test_iNN` lets its case happen, and asserts that it did. Its neighbour `test_iNN_without_...` takes the cure out
and shows the harm, so that the first one is known to watch something. Numbers are those of the semantics' table; those
missing here need a durable queue.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest

from daskqueue_core.admission import Admission
from daskqueue_core.consumer import Heartbeat, LeaseBook
from daskqueue_core.directory import Directory, PoolRecord
from daskqueue_core.errors import QueueLost, TaskExpired, WorkerCrashed
from daskqueue_core.handover import Epochs
from daskqueue_core.joining import JoinRounds
from daskqueue_core.leases import Leases
from daskqueue_core.orders import Order, Place, Release
from daskqueue_core.outcomes import Outcome
from daskqueue_core.pacing import Pacer
from daskqueue_core.queue import TransientQueue
from daskqueue_core.retry import Retry
from daskqueue_core.states import MessageFlag
from daskqueue_core.stats import QueueStats
from daskqueue_core.testing import (
    Chance,
    PoolGone,
    SimCancelled,
    SimClient,
    SimCluster,
    SimFuture,
    SimHost,
    SimQueue,
    SimulationStuck,
    SimWork,
    SimWorker,
    Start,
)

FAST_S = 10e-6


def build(*slots: int, clients: int = 1, window: int = 16, **options: Any) -> SimCluster:
    """A host without consumers for each queue, then a worker for each of `slots`, and clients."""
    cluster = SimCluster(**options)
    for _ in range(options.get("n_queues", 1)):
        cluster.worker(slots=0)
    for count in slots:
        cluster.worker(count)
    for _ in range(clients):
        cluster.client(window)
    return cluster


def started(*slots: int, **options: Any) -> tuple[SimCluster, SimClient]:
    """The same, serving."""
    cluster = build(*slots, **options)
    cluster.start()
    return cluster, cluster.clients[0]


def train(worker: SimWorker, seconds: float) -> None:
    """Let a worker know the function: it leases 25 ms of it."""
    worker.consumer.pacer.observe(b"f", 1000, 1000 * seconds)


def starts(cluster: SimCluster, future: SimFuture) -> list[Start]:
    """When and where the future's task began."""
    return cluster.starts.get(future.work, [])


def places(cluster: SimCluster, future: SimFuture) -> list[str]:
    """Where the future's task began."""
    return [start.worker for start in starts(cluster, future)]


# -- 1


def overtaken(cluster: SimCluster) -> list[SimFuture]:
    """Put 2 arrives before put 1, and the first answer is lost."""
    client = cluster.clients[0]
    cluster.finish(client.submit())
    late = cluster.network.rule("admit", delay=2.0)
    lost = cluster.network.rule("admit", "answer", drop=True)
    futures = client.submit(3, value="first") + client.submit(3, value="second")
    assert cluster.finish(futures) == ["first"] * 3 + ["second"] * 3
    cluster.run(seconds=1.0)
    assert late.hits[0].content["number"] == 1
    assert len(lost.hits) == 1
    return futures


def test_i01_a_put_overtakes_and_an_answer_is_lost() -> None:
    """Both puts are admitted in order, and the one whose answer was lost once, with the same range."""
    cluster, client = started(1)
    answers = cluster.network.watch("admit", "answer")
    futures = overtaken(cluster)
    assert cluster.queue().puts == 7
    began = [starts(cluster, future)[0].at for future in futures]
    assert began == sorted(began)
    assert min(began) > 2.0
    assert not cluster.reruns
    assert {tuple(message.content[1]) for message in answers.hits} == {(0, 1), (1, 3), (4, 3)}
    assert client.streams[0].idle


def test_i01_without_admission_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the later put comes first, and the repeated one twice."""
    monkeypatch.setattr(Admission, "refusal", lambda *_: None)
    cluster, _ = started(1)
    futures = overtaken(cluster)
    assert cluster.queue().puts == 10
    assert starts(cluster, futures[0])[0].at > starts(cluster, futures[3])[0].at


def test_i01_the_first_put_of_a_producer_is_slow() -> None:
    """Nothing overtakes it, since it would meet a queue that takes its producer for evicted."""
    cluster, client = started(1)
    late = cluster.network.rule("admit", delay=2.0)
    futures = client.submit(3, value="first") + client.submit(3, value="second")
    assert cluster.finish(futures) == ["first"] * 3 + ["second"] * 3
    cluster.run(seconds=5.0)
    assert len(late.hits) == 1
    assert cluster.queue().puts == 6
    assert not cluster.reruns


# -- 2


def test_i02_puts_and_leases_at_once() -> None:
    """Two producers and two consumers at the same instants, answers slow: no number twice, nothing runs twice."""
    cluster, one = started(2, 2, clients=2)
    two = cluster.clients[1]
    for worker in cluster.workers:
        train(worker, FAST_S)
    cluster.finish([*one.submit(), *two.submit()])
    admitted = cluster.network.rule("admit", "answer", delay=0.3, times=None)
    granted = cluster.network.rule("lease", "answer", delay=0.2, times=None)
    futures = [f for _ in range(20) for client in (one, two) for f in client.submit(10, FAST_S, client.id)]
    assert cluster.finish(futures) == ([1] * 10 + [2] * 10) * 20
    given = sorted(message.content[1] for message in admitted.hits)
    assert len(given) > 30
    assert [seq for base, count in given for seq in range(base, base + count)] == list(range(2, 402))
    leases = [lease for lease in (message.content[1] for message in granted.hits) if lease is not None]
    assert sorted(seq for lease in leases for seq in lease.ids) == list(range(2, 402))
    assert {start.worker for began in cluster.starts.values() for start in began} == {"w1", "w2"}
    assert not cluster.reruns


# -- 3


def late_heartbeat(cluster: SimCluster) -> SimFuture:
    """A heartbeat of w1 is under way while w1 is granted a lease."""
    late = cluster.network.rule("heartbeat", delay=2.0, source="w1")
    book = cluster.workers[1].consumer.book(cluster.queue().uuid)
    book.give_up(book.request())  # so that a heartbeat is due
    cluster.run(lambda: bool(late.hits))
    (future,) = cluster.clients[0].submit(seconds=5.0, value=1)
    cluster.run(lambda: bool(starts(cluster, future)))
    beat = late.hits[0]
    assert places(cluster, future) == ["w1"]
    assert starts(cluster, future)[0].at < beat.sent_at + 2.0
    assert not beat.content["held"]
    assert beat.content["sent"] >= 1
    assert cluster.finish([future]) == [1]
    return future


def test_i03_a_heartbeat_arrives_after_the_grant() -> None:
    """It was sent before and does not list the lease, but its request as open: nothing is released."""
    cluster, _ = started(1, 1)
    future = late_heartbeat(cluster)
    assert places(cluster, future) == ["w1"]
    assert cluster.queue().stats().stale == 0


def test_i03_without_open_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the lease of a healthy worker is released, and the message runs a second time."""
    honest = LeaseBook.heartbeat

    def silent(book: LeaseBook) -> Heartbeat:
        return honest(book)._replace(open=())

    monkeypatch.setattr(LeaseBook, "heartbeat", silent)
    cluster, _ = started(1, 1)
    assert places(cluster, late_heartbeat(cluster)) == ["w1", "w2"]


# -- 4


def lost_grant(cluster: SimCluster) -> tuple[SimFuture, SimFuture]:
    """W1 prefetches behind a task that overstays: it withdraws its request, whose grant is under way."""
    client = cluster.clients[0]
    train(cluster.workers[1], 0.001)
    cluster.start()
    (slow,) = client.submit(seconds=60.0)
    cluster.run(lambda: bool(starts(cluster, slow)))
    under_way = cluster.network.rule("lease", "answer", delay=5.0, target="w1")
    cluster.run(seconds=0.05)
    (future,) = client.submit(value=1)
    cluster.worker(1)
    cluster.run(lambda: bool(under_way.hits), seconds=0.04)
    assert under_way.hits[0].content[1].ids == [1]
    return slow, future


def test_i04_the_grant_is_lost() -> None:
    """A heartbeat that neither holds nor awaits it releases the lease; it runs once, elsewhere."""
    cluster = build(1)
    slow, future = lost_grant(cluster)
    assert cluster.finish([future], seconds=2.0) == [1]
    assert places(cluster, future) == ["w2"]
    cluster.finish([slow])
    assert not cluster.reruns


def test_i04_without_the_release_of_what_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the message is stuck until the worker has been silent for its whole time."""
    monkeypatch.setattr(Leases, "unlisted", lambda *_: iter(()))
    cluster = build(1)
    _, future = lost_grant(cluster)
    with pytest.raises(SimulationStuck):
        cluster.finish([future], seconds=300.0)


def test_i04_the_connection_breaks_under_the_grant() -> None:
    """The request is repeated under its number and gets the same lease again."""
    cluster, client = started(1, 1)
    lost = cluster.network.rule("lease", "answer", drop=True, where=lambda answer: answer[1] is not None)
    granted = cluster.network.watch("lease", "answer", where=lambda answer: answer[1] is not None)
    assert cluster.finish(client.submit(seconds=1.0, value=1)) == [1]
    assert len(lost.hits) == 1
    assert [message.content[1].id for message in granted.hits] == [1, 1]
    assert not cluster.reruns


def test_i04_a_consumer_stops_with_the_grant_under_way() -> None:
    """It holds nothing and awaits nothing, and says so until that is known: the lease does not wait for its time."""
    cluster, client = started(1)
    under_way = cluster.network.rule("lease", "answer", delay=5.0, target="w1")
    (future,) = client.submit(value=1)
    cluster.run(lambda: bool(under_way.hits))
    cluster.workers[1].consumer.stop()
    cluster.worker(1)
    assert cluster.finish([future], seconds=4.0) == [1]
    assert places(cluster, future) == ["w2"]


# -- 5


class Lapsing:
    """W1 runs a task for 20 s and is not heard; after 5 s w2 runs it as well."""

    def __init__(self, error: Exception | None = None) -> None:
        self.cluster, client = started(1, ttl_s=5.0)
        self.cluster.network.rule("heartbeat", source="w1", drop=True, times=None)
        self.runs = 0
        self.error = error
        (self.future,) = client.submit(seconds=20.0, run=self.run)
        self.cluster.run(lambda: bool(starts(self.cluster, self.future)))
        self.cluster.worker(1)
        self.cluster.run(lambda: len(starts(self.cluster, self.future)) == 2)
        assert places(self.cluster, self.future) == ["w1", "w2"]

    def run(self) -> int:
        """The number of the run, or the first one's failure."""
        self.runs += 1
        if self.runs == 1 and self.error is not None:
            raise self.error
        return self.runs


def test_i05_a_late_success_comes_first() -> None:
    """The lease lapsed and another worker runs the message: the late success counts, the second is stale."""
    case = Lapsing()
    assert case.cluster.finish([case.future]) == [1]
    assert case.cluster.queue().stats().stale == 0
    case.cluster.run(lambda: case.runs == 2)
    case.cluster.run(seconds=1.0)
    assert case.future.result() == 1
    assert case.cluster.queue().stats().stale == 1


def test_i05_a_late_failure_is_stale() -> None:
    """Bad news counts only from the holder: the second run's success is the outcome."""
    case = Lapsing(ValueError("late"))
    case.cluster.run(lambda: case.cluster.queue().stats().stale == 1)
    assert (case.runs, case.future.done) == (1, False)
    assert case.cluster.finish([case.future]) == [2]


class LateSuccess:
    """W1 is not heard and takes 20 s for a task; after 5 s w2 runs it as well, and that ends with `error`."""

    def __init__(self, error: Exception | None) -> None:
        self.cluster, self.client = started(1, ttl_s=5.0)
        self.cluster.network.rule("heartbeat", source="w1", drop=True, times=None)
        self.outcomes = self.cluster.network.watch("poll", "answer")
        self.runs = 0
        self.error = error
        (self.future,) = self.client.submit(run=self.run, max_crashes=9)
        self.cluster.run(lambda: self.runs == 1)

    async def run(self) -> int:
        """The first run succeeds."""
        self.runs += 1
        if self.runs == 2:
            raise self.error or AssertionError("it runs again")
        await self.cluster.workers[1].sleep(20.0)
        return 1

    def elsewhere(self) -> None:
        """W2 has run it, and takes nothing more."""
        worker = self.cluster.worker(1)
        self.cluster.run(lambda: self.runs == 2)
        self.cluster.run(seconds=0.1)
        worker.consumer.stop()
        self.cluster.run(seconds=1.0)

    def late(self) -> int:
        """The answer of w1 arrives, and long afterwards nothing else has run. Returns how many reports were stale."""
        before = self.counts.stale  # w2 said its own again, as the request that it rode on was given up
        self.cluster.run(seconds=60.0)
        self.cluster.worker(1)
        self.cluster.run(seconds=600.0)
        return self.counts.stale - before

    @property
    def counts(self) -> QueueStats:
        """Of the queue."""
        return self.cluster.queue().stats()


def test_i05_a_late_success_of_one_that_waits_for_its_retry() -> None:
    """It is accepted, and there is no retry."""
    case = LateSuccess(Retry(300.0))
    case.elsewhere()
    assert case.counts.scheduled == 1
    assert case.late() == 0
    assert case.future.result() == 1
    assert (case.runs, case.counts.scheduled) == (2, 0)


def test_i05_a_late_success_of_a_suspect() -> None:
    """It may have killed its worker, and did not."""
    case = LateSuccess(None)
    case.cluster.run(seconds=10.0)
    assert case.counts.ready == 1
    assert case.cluster.queue().lease(1, owner="near", suspects=False) is None
    assert case.late() == 0
    assert case.future.result() == 1
    assert case.runs == 1


def test_i05_a_late_success_of_a_dead_letter() -> None:
    """Its failure was seen already: stale."""
    case = LateSuccess(ValueError("second"))
    case.elsewhere()
    assert isinstance(case.future.error, ValueError)
    assert case.late() == 1
    assert isinstance(case.future.error, ValueError)
    assert (case.runs, case.counts.failed) == (2, 1)


def test_i05_a_late_success_of_what_was_requeued() -> None:
    """It saves the run: the second life ends with it."""
    case = LateSuccess(ValueError("second"))
    case.elsewhere()

    async def requeue() -> int:
        name = case.client.id, case.future.number
        count: int = await case.client.link.call(0, "requeue", names=[name])
        return count

    assert case.cluster.result(case.client, requeue) == 1
    assert (case.counts.ready, case.counts.failed) == (1, 0)
    assert case.late() == 0
    assert (case.runs, case.counts.unfinished) == (2, 0)
    told = [outcome for message in case.outcomes.hits for outcome in message.content[1].outcomes]
    assert [(outcome.life, bool(outcome.errors)) for outcome in told] == [(0, True), (1, False)]


# -- 6


def test_i06_one_answer_for_what_is_half_finished_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 1,000 results came from another worker: of the late answer for all the other half counts."""
    monkeypatch.setattr(Pacer, "prefetch_after", lambda *_: None)  # so that the answer rides on a lease request
    cluster = build(1, ttl_s=5.0)
    a = cluster.workers[1]
    train(a, FAST_S)
    cluster.start()
    network = cluster.network
    network.rule("heartbeat", source="w1", drop=True, times=None)
    late = network.rule("lease", source="w1", delay=20.0, where=lambda content: bool(content["reports"]))
    outcomes = network.watch("poll", "answer")
    works = [SimWork(FAST_S, number) for number in range(1000)]
    futures = cluster.clients[0].submit(works=works, block=True)
    cluster.run(lambda: bool(late.hits))
    b = cluster.worker(1)
    train(b, 50e-6)
    cluster.run(lambda: cluster.queue().stats().finished == 500)
    b.consumer.stop()
    cluster.run(seconds=1.0)
    assert [future.done for future in futures] == [True] * 500 + [False] * 500
    assert cluster.finish(futures) == list(range(1000))
    assert [places(cluster, futures[at]) for at in (0, 499, 500, 999)] == [["w1", "w2"]] * 2 + [["w1"]] * 2
    last: Outcome = [outcome for message in outcomes.hits for outcome in message.content[1].outcomes][-1]
    assert (last.index, last.count, last.accepted) == (0, 1000, ((500, 1000),))
    stale = 500 + 125  # w2 said its last eighth of suspects again, as the request that it rode on was given up
    assert cluster.queue().stats().stale == stale


class Second:
    """A task whose first run says 1, and whose second ends as it is told, or not for long."""

    def __init__(self, cluster: SimCluster, second: Exception | int | None) -> None:
        self.cluster = cluster
        self.second = second
        self.runs = 0

    async def __call__(self) -> int:
        self.runs += 1
        if self.runs == 1:
            return 1
        if isinstance(self.second, Exception):
            raise self.second
        if self.second is None:
            await self.cluster.workers[2].sleep(100.0)
        return self.second or 2


def test_i06_one_answer_for_what_became_this_and_that_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 that ran, 5 became something else meanwhile: the late answer counts for what has not ended."""
    monkeypatch.setattr(Pacer, "prefetch_after", lambda *_: 0.0)  # so that the answer goes alone
    cluster = build(1, ttl_s=5.0)
    a = cluster.workers[1]
    train(a, FAST_S)
    cluster.start()
    client, network = cluster.clients[0], cluster.network
    network.rule("heartbeat", source="w1", drop=True, times=None)
    late = network.rule("settle", source="w1", delay=20.0)
    outcomes = network.watch("poll", "answer")
    runs = [Second(cluster, second) for second in (2, Retry(600.0), ValueError("no"), 2, None, 2, 2, 2)]
    futures = client.submit(works=[SimWork(run=run) for run in runs], max_crashes=9)
    cluster.run(lambda: bool(late.hits))
    a.consumer.stop()
    cluster.run(seconds=8.0)
    assert cluster.queue().ready == 8
    assert cancel(cluster, client, 3, 4) == 1
    cluster.worker(1)
    cluster.run(lambda: runs[4].runs == 2)
    stats = cluster.queue().stats()
    assert (stats.scheduled, stats.failed, stats.cancelled, stats.delivered, stats.ready) == (1, 1, 1, 1, 3)
    cluster.end(futures, seconds=20.0)
    assert [future.value for future in futures] == [2, 1, None, None, *([1] * 4)]
    assert isinstance(futures[2].error, ValueError)
    assert isinstance(futures[3].error, SimCancelled)
    cluster.run(seconds=900.0)
    assert [run.runs for run in runs] == [2, 2, 2, 1, 2, 1, 1, 1]
    told = [outcome for message in outcomes.hits for outcome in message.content[1].outcomes]
    assert (told[-1].count, told[-1].accepted) == (8, ((1, 2), (4, 8)))
    assert cluster.queue().stats().stale == 3 + 1  # of w1, and what w2 said of the slow one


# -- 7


def nested(cluster: SimCluster) -> tuple[SimFuture, list[SimFuture]]:
    """A task on queue 1 submits into queue 0, with its worker's own client."""
    outer, inner = cluster.clients
    made: list[SimFuture] = []

    async def submit() -> str:
        made.extend(inner.submit(seconds=10.0, value="inner", queue=0))
        await inner.flush()
        return "outer"

    (future,) = outer.submit(seconds=5.0, run=submit, queue=1)
    return future, made


def test_i07_join_while_a_task_submits_into_the_other_queue() -> None:
    """Queue 0 was idle when it was asked and is not when queue 1 is: the join waits for both."""
    cluster, client = started(1, 1, n_queues=2, clients=2)
    future, made = nested(cluster)
    states = cluster.network.watch("join", "answer")
    rounds = cluster.result(client, client.join)
    assert rounds > 2
    assert cluster.simulation.clock.seconds > 15.0
    assert future.result() == "outer"
    assert cluster.finish(made, seconds=1.0) == ["inner"]
    assert states.hits[0].content[1][1:] == (0, 0, True)


def test_i07_without_the_second_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the join returns in the middle of the inner task."""
    monkeypatch.setattr(JoinRounds, "done", lambda _, states: all(state.idle for state in states))
    cluster, client = started(1, 1, n_queues=2, clients=2)
    nested(cluster)
    cluster.result(client, client.join)
    assert cluster.queue(0).unfinished == 1


# -- 8


def test_i08_cancelled_while_it_runs_and_the_worker_dies() -> None:
    """The consumer was told and could not agree: the message ends as cancelled and does not run again."""
    cluster, client = started(1, 1)
    (future,) = client.submit(seconds=60.0, value=1)
    cluster.run(lambda: bool(starts(cluster, future)))
    told = cluster.network.watch("heartbeat", "answer", where=lambda answer: bool(answer[1]))
    assert cancel(cluster, client, 0, 1) == 1
    cluster.run(lambda: bool(told.hits), seconds=2.0)
    assert not future.done
    cluster.kill(cluster.workers[1])
    cluster.run(seconds=120.0)
    assert isinstance(future.error, SimCancelled)
    assert places(cluster, future) == ["w1"]


def cancel(cluster: SimCluster, client: SimClient, start: int, stop: int) -> int:
    """Ask for it over the network."""

    async def ask() -> int:
        count: int = await client.link.call(0, "cancel", runs=((start, stop),))
        return count

    return cluster.result(client, ask)


def test_i08_without_the_cancel() -> None:
    """Then the loss of the worker makes it run again."""
    cluster, client = started(1, 1)
    (future,) = client.submit(seconds=60.0, value=1)
    cluster.run(lambda: bool(starts(cluster, future)))
    cluster.kill(cluster.workers[1])
    assert cluster.finish([future]) == [1]
    assert places(cluster, future) == ["w1", "w2"]


def test_i08_the_holder_agrees() -> None:
    """What has not begun is given up within a heartbeat, and never begins."""
    cluster = build(1)
    train(cluster.workers[1], 0.002)
    cluster.start()
    client = cluster.clients[0]
    futures = client.submit(10, 0.02, value=1)
    cluster.run(lambda: bool(starts(cluster, futures[0])))
    assert cancel(cluster, client, 5, 10) == 5
    cluster.workers[1].spawn(cluster.workers[1].consumer.heartbeat, 0)
    cluster.end(futures, seconds=2.0)
    assert [future.error is None for future in futures] == [True] * 5 + [False] * 5
    assert all(isinstance(future.error, SimCancelled) for future in futures[5:])
    assert not any(starts(cluster, future) for future in futures[5:])


@pytest.mark.parametrize("max_crashes", [2, 9])
def test_i08_a_suspect_is_cancelled_and_its_worker_dies(max_crashes: int) -> None:
    """It came back marked, and was asked to stop in its second run: the loss ends it as cancelled, also the last."""
    cluster, client = started(1, 1)
    (future,) = client.submit(seconds=60.0, value=1, max_crashes=max_crashes)
    cluster.run(lambda: bool(starts(cluster, future)))
    cluster.kill(cluster.workers[1])
    cluster.run(lambda: len(starts(cluster, future)) == 2, seconds=10.0)
    assert cluster.queue()._ledger.flags(0) is MessageFlag.SUSPECT
    cluster.worker(1)
    assert cancel(cluster, client, 0, 1) == 1
    cluster.kill(cluster.workers[2])
    cluster.run(seconds=200.0)
    assert isinstance(future.error, SimCancelled)
    assert places(cluster, future) == ["w1", "w2"]


def test_i08_several_suspects_are_cancelled() -> None:
    """Those that wait end at once; the one that runs may have killed its worker, and is not given to another."""
    cluster = build(2)
    train(cluster.workers[1], 0.001)
    cluster.start()
    client = cluster.clients[0]
    futures = client.submit(2, 60.0, block=True)
    cluster.run(lambda: len(cluster.starts) == 2)
    cluster.kill(cluster.workers[1])
    cluster.run(seconds=1.0)
    cluster.worker(2)
    cluster.run(lambda: len(cluster.reruns) == 1)
    cluster.run(seconds=1.0)
    assert cancel(cluster, client, 0, 2) == 2
    cluster.run(seconds=0.1)
    assert sorted(future.done for future in futures) == [False, True]
    cluster.kill(cluster.workers[2])
    cluster.worker(2)
    cluster.run(seconds=100.0)
    assert all(isinstance(future.error, SimCancelled) for future in futures)
    assert sorted(len(places(cluster, future)) for future in futures) == [1, 2]


def test_i08_cancelled_while_it_runs_and_it_asks_for_another_run() -> None:
    """A retry is no way out."""
    cluster, client = started(1)
    flaky = Flaky(9, 1.0)
    (future,) = client.submit(seconds=5.0, run=flaky)
    cluster.run(lambda: bool(starts(cluster, future)))
    assert cancel(cluster, client, 0, 1) == 1
    cluster.run(seconds=60.0)
    assert isinstance(future.error, SimCancelled)
    assert flaky.runs == 1


def test_i08_cancelled_while_it_waits_for_its_retry() -> None:
    """It ends at once."""
    cluster, client = started(1)
    flaky = Flaky(9, 100.0)
    (future,) = client.submit(run=flaky)
    cluster.run(lambda: cluster.queue().stats().scheduled == 1)
    assert cancel(cluster, client, 0, 1) == 1
    cluster.run(lambda: future.done, seconds=0.1)
    assert isinstance(future.error, SimCancelled)
    cluster.run(seconds=200.0)
    assert flaky.runs == 1


@pytest.mark.parametrize("dies", [True, False])
def test_i08_expired_while_it_runs_and_the_worker_dies(dies: bool) -> None:
    """It never runs again; without the loss its success counts."""
    cluster, client = started(1, 1)
    (future,) = client.submit(seconds=60.0, value=1, expires_at=cluster.simulation.clock() + 10 * 10**9)
    cluster.run(lambda: bool(starts(cluster, future)))
    cluster.run(seconds=20.0)
    assert not future.done
    if dies:
        cluster.kill(cluster.workers[1])
    cluster.end([future])
    cluster.run(seconds=100.0)
    assert isinstance(future.error, TaskExpired) if dies else future.result() == 1
    assert places(cluster, future) == ["w1"]


# -- 9


@pytest.mark.parametrize("early_ack", [True, False])
def test_i09_early_ack_and_the_worker_dies(early_ack: bool) -> None:
    """The future ends with `WorkerCrashed` and nothing runs again; without early ack it does."""
    cluster, client = started(1, 1, early_ack=early_ack)
    (future,) = client.submit(seconds=10.0, value=1)
    cluster.run(lambda: bool(starts(cluster, future)))
    cluster.kill(cluster.workers[1])
    cluster.run(seconds=60.0)
    assert places(cluster, future) == (["w1"] if early_ack else ["w1", "w2"])
    assert isinstance(future.error, WorkerCrashed) if early_ack else future.result() == 1


def test_i09_a_retry_is_the_tasks_own_wish() -> None:
    """With early ack too it runs again if it asks for it, and if somebody requeues it; not after a loss.

    Its key is taken again as soon as it is requeued.
    """
    cluster, client = started(1, early_ack=True)
    flaky = Flaky(1, 5.0)
    (future,) = client.submit(seconds=10.0, run=flaky, keys=("k",))
    cluster.run(lambda: len(starts(cluster, future)) == 2)
    cluster.kill(cluster.workers[1])
    cluster.worker(1)
    cluster.run(seconds=60.0)
    assert isinstance(future.error, WorkerCrashed)
    assert places(cluster, future) == ["w1", "w1"]
    (letter,) = cluster.queue().dead_letters()
    assert (letter.reason, letter.attempts, letter.key) == ("early ack", 1, "k")

    async def requeue() -> int:
        count: int = await client.link.call(0, "requeue", names=["k"])
        return count

    assert cluster.result(client, requeue) == 1
    (again,) = client.submit(seconds=10.0, value="not put", keys=("k",))
    assert cluster.finish([again]) == ["done"]
    assert places(cluster, future) == ["w1", "w1", "w2"]
    assert places(cluster, again) == []


# -- 10


def test_i10_half_of_a_lease_is_acked_and_the_owner_dies() -> None:
    """The other half returns and runs elsewhere, the acked half does not."""
    cluster = build(2)
    train(cluster.workers[1], 20e-6)
    cluster.start()
    granted = cluster.network.watch("lease", "answer", target="w1")
    works = [SimWork(20e-6 if number < 500 else 0.001, number) for number in range(1000)]
    futures = cluster.clients[0].submit(works=works)
    cluster.worker(1)
    cluster.run(lambda: cluster.queue().stats().finished == 500)
    cluster.kill(cluster.workers[1])
    assert cluster.finish(futures, seconds=10.0) == list(range(1000))
    assert len(granted.hits[0].content[1]) == 1000
    assert {tuple(places(cluster, future)) for future in futures[:500]} == {("w1",)}
    assert {places(cluster, future)[-1] for future in futures[500:]} == {"w2"}


def test_i10_a_lease_of_this_and_that_and_the_owner_dies() -> None:
    """A quarter succeeded, one waits for its retry, one failed: only what was running is suspect, and is run apart."""
    cluster = build(4)
    train(cluster.workers[1], 0.001)
    cluster.start()
    client = cluster.clients[0]
    granted = cluster.network.watch("lease", "answer", where=is_grant)
    flaky = [Flaky(1, 30.0) for _ in range(2)]
    works = [
        *[SimWork(0.01, "ok")] * 2,
        *[SimWork(0.01, run=each) for each in flaky],
        *[SimWork(0.01, run=fail)] * 2,
        *[SimWork(50.0, "slow")] * 2,
    ]
    futures = client.submit(works=works, block=True)
    cluster.run(seconds=1.0)
    assert len(granted.hits[0].content[1]) == 8
    stats = cluster.queue().stats()
    assert (stats.finished, stats.scheduled, stats.failed, stats.delivered) == (4, 2, 2, 2)
    cluster.kill(cluster.workers[1])
    cluster.run(seconds=1.0)
    (urgent,) = client.submit(value="urgent", priority=5)
    cluster.worker(2)
    cluster.end([*futures, urgent])
    assert [future.value for future in futures] == ["ok", "ok", "done", "done", None, None, "slow", "slow"]
    assert [len(places(cluster, future)) for future in futures] == [1, 1, 2, 2, 1, 1, 2, 2]
    later = [message.content[1].runs for message in granted.hits if message.target == "w2"]
    assert later[:2] == [((8, 9),), ((6, 7),)]
    assert ((7, 8),) in later
    assert cluster.queue().stats().retries == 2


# -- 11


def busy_host(cluster: SimCluster) -> SimFuture:
    """The queue's host does not run for 90 s; leases are good for 30."""
    (future,) = cluster.clients[0].submit(seconds=120.0, value=1)
    cluster.run(lambda: bool(starts(cluster, future)))
    cluster.run(seconds=10.0)
    cluster.workers[0].hold(90.0)
    waiting = cluster.clients[0].submit(value=2)
    assert cluster.finish([future, *waiting]) == [1, 2]
    assert cluster.clients[0].over is None
    assert len(cluster.directory.pools["pool"].places[0].uuid) > 0
    return future


def test_i11_the_host_is_away() -> None:
    """It could hear nobody, so nobody's lease lapsed, and nobody calls the queue lost."""
    cluster, _ = started(1, 1, ttl_s=30.0)
    uuid = cluster.queue().uuid
    assert places(cluster, busy_host(cluster)) == ["w1"]
    assert cluster.queue().uuid == uuid


def test_i11_without_the_shift_of_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a healthy worker's lease lapses, and its task runs twice."""
    monkeypatch.setattr(TransientQueue, "shift_deadlines", lambda *_: None)
    cluster, _ = started(1, 1, ttl_s=30.0)
    assert places(cluster, busy_host(cluster)) == ["w1", "w2"]


# -- 12


@pytest.mark.parametrize(("ttl_s", "where"), [(300.0, ["w1"]), (30.0, ["w1", "w2"])])
def test_i12_a_task_holds_the_gil(ttl_s: float, where: list[str]) -> None:
    """Its worker is silent for 90 s and Dask keeps it: not redelivered, as the lease lives as long as the worker."""
    cluster, client = started(1, 1, ttl_s=ttl_s)
    beats = cluster.network.watch("heartbeat", source="w1")
    (future,) = client.submit(seconds=90.0, value=1, holds_gil=True)
    cluster.run(lambda: bool(starts(cluster, future)))
    before = len(beats.hits)
    cluster.run(seconds=85.0)
    assert len(beats.hits) == before
    assert cluster.finish([future]) == [1]
    cluster.run(seconds=100.0)
    assert places(cluster, future) == where


# -- 13


def only_one(cluster: SimCluster, index: int = 0) -> Place:
    """The place of a queue, which is the only one where it or an earlier life of it is or is leaving from."""
    place = cluster.directory.pools["pool"].places[index]
    here = [
        (w.address, q.queue.uuid, q.queue.epoch) for w in cluster.workers if w.alive for q in w.host.queues.values()
    ]
    places = [(p.address, p.uuid, p.epoch) for p in cluster.directory.pools["pool"].places]
    assert sorted(here) == sorted(places)
    assert not any(worker.host.leaving for worker in cluster.workers if worker.alive)
    assert not cluster.directory.pools["pool"].moves
    cluster.queue(index).validate()
    return place


def is_grant(answer: Any) -> bool:
    """Whether the answer to a lease request is a lease."""
    return answer[0] == "ok" and answer[1] is not None


class Moving:
    """Queue 0 of w0 is to move to w1; w2 has consumers. What w0 gives away is under way for 2 s."""

    def __init__(self, **options: Any) -> None:
        self.cluster = SimCluster(**options)
        self.old, self.new, self.consumer = (self.cluster.worker(slots) for slots in (0, 0, 1))
        self.client = self.cluster.client()
        self.cluster.start()
        self.before = self.place
        self.cluster.finish(self.client.submit())

    @property
    def place(self) -> Place:
        """Where the queue is."""
        return self.cluster.directory.pools["pool"].places[0]

    def leave(self) -> None:
        """It is closed and under way."""
        self.cluster.network.rule("hand_over", "answer", delay=2.0)
        self.cluster.move(0, self.new)
        self.cluster.run(lambda: bool(self.old.host.leaving))

    def arrive(self) -> None:
        """It is served again."""
        self.cluster.run(lambda: self.place.up and self.place.epoch > self.before.epoch, seconds=60.0)
        self.cluster.run(seconds=1.0)

    def check_moved(self) -> None:
        """The same queue, at the new host, and nowhere else."""
        assert only_one(self.cluster) == Place(self.before.uuid, "w1", 1, True)


@pytest.mark.parametrize("slow", ["", "hand_over", "take_over", "settle", "lease", "resolve"])
def test_i13_workers_leave_one_after_the_other(slow: str) -> None:
    """In mid work, each a host that has consumers, whatever is slow: all ends, and nothing runs twice."""
    cluster = SimCluster(n_queues=2)
    for _ in range(4):
        cluster.worker()
    client = cluster.client()
    cluster.start()
    uuids = [place.uuid for place in cluster.directory.pools["pool"].places]
    if slow:
        cluster.network.rule(slow, "answer", delay=0.7)
    futures = [future for value in range(60) for future in client.submit(value=value, seconds=0.2)]
    for worker in cluster.workers[:3]:
        cluster.run(seconds=1.0)
        cluster.leave(worker, seconds=6.0)
    assert cluster.finish(futures) == list(range(60))
    cluster.run(seconds=10.0)
    for index in range(2):
        place = only_one(cluster, index)
        assert (place.uuid, place.address) == (uuids[index], "w3")
    assert not cluster.reruns


def test_i13_a_put_whose_answer_was_lost() -> None:
    """It was admitted, and is repeated at the new host, which knows it."""
    case = Moving()
    lost = case.cluster.network.rule("admit", "answer", delay=1.0, drop=True)
    futures = case.client.submit(3, value=1)
    case.cluster.run(lambda: bool(lost.hits))
    case.leave()
    assert case.cluster.finish(futures) == [1] * 3
    case.check_moved()
    assert case.cluster.queue().puts == 4
    assert not case.cluster.reruns


def test_i13_without_the_admission_of_producers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the repeated put is put a second time."""
    monkeypatch.setattr(Admission, "rows", lambda _: [])
    case = Moving()
    lost = case.cluster.network.rule("admit", "answer", delay=1.0, drop=True)
    futures = case.client.submit(3, value=1)
    case.cluster.run(lambda: bool(lost.hits))
    case.leave()
    case.cluster.finish(futures)
    case.cluster.run(seconds=5.0)
    assert case.cluster.queue().puts == 7


def test_i13_a_put_while_it_is_under_way() -> None:
    """The old host does not take it any more, the new one does."""
    case = Moving()
    case.leave()
    refused = case.cluster.network.watch("admit", "answer", source="w0")
    futures = case.client.submit(3, value=1)
    assert case.cluster.finish(futures, seconds=5.0) == [1] * 3
    case.cluster.run(seconds=1.0)
    case.check_moved()
    assert {message.content[0] for message in refused.hits} == {"lost"}


def test_i13_without_closing_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what the old host admits while its copy is under way is lost."""
    honest = SimHost.hand_over

    def hand_over(host: SimHost, uuid: str, epoch: int) -> tuple[Any, ...]:
        queue = host.queues[uuid].queue
        answer = honest(host, uuid, epoch)
        state, expected = pickle.loads(answer[1])
        copy = TransientQueue.take_over(state, clock=queue._clock, epoch=epoch)
        copy.epoch = queue.epoch
        host.queues[uuid] = SimQueue(host._node, copy, expected)
        return answer

    monkeypatch.setattr(SimHost, "hand_over", hand_over)
    case = Moving()
    case.leave()
    futures = case.client.submit(3, 10.0)
    with pytest.raises(SimulationStuck):
        case.cluster.finish(futures)


def test_i13_a_grant_is_under_way() -> None:
    """The old host granted it and moved: the request is repeated under its number and gets the same lease."""
    case = Moving()
    lost = case.cluster.network.rule("lease", "answer", drop=True, delay=1.0, where=is_grant)
    granted = case.cluster.network.watch("lease", "answer", where=is_grant)
    (future,) = case.client.submit(seconds=1.0, value=1)
    case.cluster.run(lambda: bool(lost.hits))
    case.leave()
    assert case.cluster.finish([future], seconds=6.0) == [1]
    assert len({message.content[1].id for message in granted.hits}) == 1
    assert {message.source for message in granted.hits} == {"w0", "w1"}
    case.cluster.run(seconds=1.0)
    case.check_moved()
    assert not case.cluster.reruns


def test_i13_what_waits_at_the_old_host_asks_at_the_new_one() -> None:
    """A parked lease request, a poll and a join are answered as lost at once, not when their time is over."""
    case = Moving()
    join = case.client.spawn(case.client.join)
    case.cluster.run(seconds=0.1)
    case.leave()
    case.arrive()
    case.check_moved()
    parked = case.cluster.network.watch("lease", target="w1")
    (future,) = case.client.submit(value=1)
    assert case.cluster.finish([future], seconds=0.1) == [1]
    assert case.cluster.simulation.result(join, seconds=1.0) >= 2
    assert len(parked.hits) <= 1


def test_i13_a_task_runs_on_and_reports_to_the_new_host() -> None:
    """Its lease went along: it is renewed there, and the report ends it."""
    case = Moving(ttl_s=5.0)
    (future,) = case.client.submit(seconds=20.0, value=1)
    case.cluster.run(lambda: bool(starts(case.cluster, future)))
    case.leave()
    assert case.cluster.finish([future], seconds=25.0) == [1]
    case.check_moved()
    assert places(case.cluster, future) == ["w2"]
    assert case.cluster.queue().stats().stale == 0


def test_i13_outcomes_come_again_and_count_once() -> None:
    """The client had read some and acknowledged none: the new host sends all again, the client drops those it knows."""
    case = Moving()
    case.cluster.network.rule("poll", drop=True, delay=1.0, where=lambda content: content["cursor"][1] > 1)
    futures = case.client.submit(5, 0.05, value=1)
    case.cluster.run(lambda: futures[0].done)
    case.leave()
    again = case.cluster.network.watch("poll", "answer", source="w1")
    assert case.cluster.finish(futures, seconds=10.0) == [1] * 5
    sent = [each.index for message in again.hits for each in message.content[1].outcomes]
    assert 0 in sent


def test_i13_a_cancel_is_under_way() -> None:
    """The old host flagged it and moved: the holder hears of it from the new one."""
    case = Moving()
    train(case.consumer, 0.002)
    case.cluster.finish(case.client.submit())  # so that its next request knows the function
    futures = case.client.submit(10, 0.5, value=1)
    case.cluster.run(lambda: bool(starts(case.cluster, futures[0])))
    case.cluster.network.rule("heartbeat", drop=True, times=None, target="w0")
    first = case.cluster.queue().puts - 10
    assert cancel(case.cluster, case.client, first + 8, first + 10) == 2
    case.leave()
    case.cluster.end(futures)
    case.check_moved()
    assert [future.error is None for future in futures] == [True] * 8 + [False] * 2
    assert not any(starts(case.cluster, future) for future in futures[8:])


def test_i13_delays_and_retries_go_along() -> None:
    """What waits for its time, new or as a retry, begins then at the new host; attempts are counted on."""
    case = Moving()
    flaky = Flaky(2, 10.0)
    now = case.cluster.simulation.clock
    delayed = case.client.submit(value=1, ready_at=now() + 15 * 10**9)
    retried = case.client.submit(run=flaky)
    case.cluster.run(lambda: flaky.runs == 1)
    began = now.seconds
    case.cluster.run(seconds=0.1)
    assert case.cluster.queue().stats().scheduled == 2
    case.leave()
    outcomes = case.cluster.network.watch("poll", "answer", source="w1")
    assert case.cluster.finish([*delayed, *retried]) == [1, "done"]
    at = [start.at - began for start in starts(case.cluster, retried[0])]
    assert at == pytest.approx([0.0, 10.0, 20.0], abs=0.5)
    assert starts(case.cluster, delayed[0])[0].at == pytest.approx(15.0 + began, abs=0.5)
    told = [outcome for message in outcomes.hits for outcome in message.content[1].outcomes]
    assert bytes([3]) in [outcome.attempts for outcome in told]


@pytest.mark.parametrize("late", [False, True])
def test_i13_a_worker_is_lost_meanwhile(late: bool) -> None:
    """While the queue is under way, or just before, so that the word of it is late: its lease goes back."""
    case = Moving()
    (future,) = case.client.submit(seconds=30.0, value=1)
    case.cluster.run(lambda: bool(starts(case.cluster, future)))
    if late:
        word = case.cluster.network.rule("lost", delay=5.0)
        case.cluster.kill(case.consumer)
        case.cluster.run(lambda: bool(word.hits))
    case.leave()
    if not late:
        case.cluster.kill(case.consumer)
    case.cluster.worker(1)
    assert case.cluster.finish([future], seconds=40.0) == [1]
    case.check_moved()
    assert places(case.cluster, future) == ["w2", "w3"]


def test_i13_without_what_the_directory_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the lost worker's lease waits for its deadline."""
    honest = Directory.moved

    def moved(directory: Directory, *args: Any) -> list[Order]:
        return [order for order in honest(directory, *args) if not isinstance(order, Release)]

    monkeypatch.setattr(Directory, "moved", moved)
    case = Moving()
    (future,) = case.client.submit(seconds=30.0, value=1)
    case.cluster.run(lambda: bool(starts(case.cluster, future)))
    case.leave()
    case.cluster.kill(case.consumer)
    case.cluster.worker(1)
    with pytest.raises(SimulationStuck):
        case.cluster.finish([future], seconds=200.0)


def test_i13_it_waits_for_what_is_put_again() -> None:
    """A queue in its second life moves before a client has put again what the first one lost: a join waits for that."""
    cluster = build(1, clients=2)
    host = cluster.workers[0]
    cluster.worker(0)
    cluster.worker(0)
    cluster.start()
    slow, other = cluster.clients
    futures = slow.submit(5, 1.0, value=1)
    cluster.run(seconds=0.5)
    cluster.network.rule("resolve", "answer", target=slow.address, delay=5.0, times=None)
    cluster.kill(host)
    pool = cluster.directory.pools["pool"]
    cluster.run(lambda: pool.places[0].epoch == 1)
    cluster.run(lambda: pool.places[0].up)
    old = pool.places[0].address
    cluster.moved(0, next(worker for worker in cluster.workers[2:] if worker.address != old))
    assert not any(future.done for future in futures)
    cluster.result(other, other.join)
    assert cluster.queue().puts == 5
    assert cluster.finish(futures, seconds=10.0) == [1] * 5


def test_i13_the_journey_is_longer_than_a_lease() -> None:
    """Nobody could be heard meanwhile, so nobody's lease lapses."""
    case = Moving(ttl_s=5.0)
    (future,) = case.client.submit(seconds=40.0, value=1)
    case.cluster.run(lambda: bool(starts(case.cluster, future)))
    case.cluster.network.rule("hand_over", "answer", delay=20.0)
    case.cluster.move(0, case.new)
    case.cluster.worker(1)
    assert case.cluster.finish([future]) == [1]
    case.check_moved()
    assert places(case.cluster, future) == ["w2"]


def called_off(case: Moving) -> list[SimFuture]:
    """The queue is at w1. W0 takes it over, but its word does not arrive: called off, and home to w1.

    Meanwhile a client that still believes it is at w0, as it was at first, puts something there.
    """
    case.cluster.moved(0, case.new)
    believed = [Place(case.before.uuid, "w0", 0, True)]
    case.cluster.run(seconds=1.0)
    case.cluster.network.rule("take_over", "answer", target="scheduler", source="w0", delay=60.0)
    case.cluster.move(0, case.old)
    case.cluster.run(lambda: bool(case.old.host.queues))
    case.client.link.places = believed
    return case.client.submit(3, value=1)


def test_i13_a_move_is_called_off() -> None:
    """Nobody is served by a host whose place was not switched, whatever he believes; the old one takes it back."""
    case = Moving()
    futures = called_off(case)
    assert case.cluster.finish(futures, seconds=60.0) == [1] * 3
    case.cluster.run(seconds=60.0)
    assert only_one(case.cluster) == Place(case.before.uuid, "w1", 3, True)
    assert not case.cluster.reruns


def test_i13_without_the_epoch_in_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the client's put is taken by the host that is told to drop the queue."""
    honest = SimHost.call

    async def call(host: SimHost, op: str, uuid: str, epoch: int, *args: Any) -> Any:
        return await honest(host, op, uuid, host.queues[uuid].queue.epoch if uuid in host.queues else epoch, *args)

    monkeypatch.setattr(SimHost, "call", call)
    case = Moving()
    futures = called_off(case)
    with pytest.raises(SimulationStuck):
        case.cluster.finish(futures, seconds=120.0)


def late_question(case: Moving) -> list[SimFuture]:
    """W1 asks w0 for the queue, and is heard only after the move was called off."""
    late = case.cluster.network.rule("hand_over", delay=40.0)
    case.cluster.move(0, case.new)
    case.cluster.run(lambda: case.place.epoch == 2, seconds=35.0)
    assert late.hits[0].content["epoch"] == 1
    case.cluster.run(seconds=20.0)
    return case.client.submit(3, value=1)


def test_i13_a_question_comes_late() -> None:
    """The queue has a higher epoch by then, and stays."""
    case = Moving()
    assert case.cluster.finish(late_question(case), seconds=1.0) == [1] * 3
    assert only_one(case.cluster) == Place(case.before.uuid, "w0", 2, True)


def test_i13_without_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is taken away from where it is."""
    monkeypatch.setattr(Epochs, "admits", lambda *_: True)
    case = Moving()
    with pytest.raises(ValueError, match="1 is not later"):
        late_question(case)
    assert not case.old.host.queues


class Flaky:
    """A task that asks to be run again so many times, and is done then."""

    def __init__(self, times: int, delay: float) -> None:
        self.times = times
        self.delay = delay
        self.runs = 0

    def __call__(self) -> str:
        self.runs += 1
        if self.runs <= self.times:
            raise Retry(self.delay)
        return "done"


def traffic(cluster: SimCluster, random: Random) -> list[SimFuture]:
    """Something of everything, a little later."""
    client = random.choice(cluster.clients)
    seconds = random.choice([0.0, 0.001, 0.05])
    count = random.randrange(1, 30)
    works = [SimWork(seconds, "done", random.choice(KINDS)(random)) for _ in range(count)]
    options: dict[str, Any] = {"priority": random.randrange(2)}
    if random.random() < 0.3:
        options["ready_at"] = cluster.simulation.clock() + random.randrange(5 * 10**9)
    futures = client.submit(works=works, block=random.random() < 0.5, function=str(seconds).encode(), **options)
    if random.random() < 0.5:
        start = random.randrange(100)
        client.spawn(client.link.call, 0, "cancel", runs=((start, start + random.randrange(10)),))
    cluster.run(seconds=random.uniform(0.0, 0.5))
    return futures


KINDS: list[Callable[[Random], Any]] = [
    lambda _: None,
    lambda _: None,
    lambda _: fail,
    lambda random: Flaky(random.randrange(1, 3), random.choice([0.0, 0.3, 2.0])),
]


def check_futures(cluster: SimCluster, futures: list[SimFuture]) -> None:
    """They have ended as they should."""
    for future in futures:
        run = cluster.works[future.work].run
        if future.error is None:
            assert future.value == "done"
        elif not isinstance(future.error, SimCancelled):
            assert isinstance(future.error, ZeroDivisionError)
            assert run is fail


SEEDS = [range(at, at + 20) for at in range(0, 200, 20)]
SOAKS = pytest.mark.parametrize(
    "seeds",
    [SEEDS[0], *(pytest.param(seeds, marks=pytest.mark.slow) for seeds in SEEDS[1:])],
    ids=lambda seeds: str(seeds.start),
)


@SOAKS
def test_i13_soak(seeds: range) -> None:
    """The queue moves again and again, the network does its worst: all ends right, nothing is put or run twice."""
    for seed in seeds:
        random = Random(seed)
        cluster, _ = started(2, 2, clients=2)
        cluster.network.chance = Chance(random, drop=0.05, twice=0.05, slow=0.1, slowest_s=random.choice([0.1, 3.0]))
        uuid = cluster.queue().uuid
        futures: list[SimFuture] = []
        for _ in range(10):
            cluster.move(0, random.choice(cluster.workers))
            futures += traffic(cluster, random)
        cluster.end(futures, seconds=900.0)
        check_futures(cluster, futures)
        cluster.run(seconds=40.0)
        place = only_one(cluster)
        assert place.uuid == uuid
        assert place.epoch > 0
        assert cluster.queue().puts == len(futures)
        assert cluster.queue().unfinished == 0
        for future in futures:
            run = cluster.works[future.work].run
            times = len(starts(cluster, future))
            most = 1 + run.times if isinstance(run, Flaky) else 1
            assert times == most or (isinstance(future.error, SimCancelled) and times < most)


# -- 14


def test_i14_the_old_host_dies_before_it_was_asked() -> None:
    """What it held is gone: the client puts it again into the next life, and that is the only queue."""
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    asked = case.cluster.network.rule("hand_over", delay=2.0)
    case.cluster.move(0, case.new)
    case.cluster.run(lambda: bool(asked.hits))
    case.cluster.kill(case.old)
    assert case.cluster.finish(futures, seconds=120.0) == [1] * 5
    place = only_one(case.cluster)
    assert place.uuid != case.before.uuid
    assert place.epoch == 2


def test_i14_the_old_host_dies_with_the_queue_under_way() -> None:
    """The same: the answer breaks with its host."""
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    case.leave()
    case.cluster.kill(case.old)
    assert case.cluster.finish(futures, seconds=120.0) == [1] * 5
    assert only_one(case.cluster).uuid != case.before.uuid


@pytest.mark.parametrize("silent", [False, True])
def test_i14_the_old_host_dies_before_the_switch(silent: bool) -> None:
    """The new one has the queue and says so later: nothing is lost, and it is the same queue."""
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    case.cluster.network.rule("take_over", "answer", delay=2.0)
    case.cluster.move(0, case.new)
    case.cluster.run(lambda: bool(case.new.host.queues))
    case.cluster.kill(case.old, silent=silent)
    assert case.place.address != "w1"
    assert case.cluster.finish(futures, seconds=60.0) == [1] * 5
    case.cluster.run(seconds=60.0)
    case.check_moved()
    assert not case.cluster.reruns


def test_i14_without_waiting_for_the_new_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what arrived in time is thrown away, and what runs is run again."""

    def forget(directory: Directory, pool: PoolRecord, index: int) -> list[Order]:
        del pool.moves[pool.places[index].uuid]
        return directory._rehost(pool, index)

    monkeypatch.setattr(Directory, "_host_left", forget)
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    case.cluster.network.rule("take_over", "answer", delay=2.0)
    case.cluster.move(0, case.new)
    case.cluster.run(lambda: bool(case.new.host.queues))
    case.cluster.kill(case.old)
    case.cluster.finish(futures, seconds=120.0)
    assert case.place.uuid != case.before.uuid
    assert case.cluster.reruns


def test_i14_the_old_host_dies_after_the_switch() -> None:
    """It has nothing any more."""
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    dropped = case.cluster.network.rule("drop", delay=2.0)
    case.cluster.move(0, case.new)
    case.cluster.run(lambda: bool(dropped.hits))
    assert case.old.host.leaving
    case.cluster.kill(case.old)
    assert case.cluster.finish(futures, seconds=60.0) == [1] * 5
    case.check_moved()
    assert not case.cluster.reruns


@pytest.mark.parametrize("arrived", [False, True])
def test_i14_the_new_host_dies_before_the_switch(arrived: bool) -> None:
    """The old one kept what it gave away, and takes the queue over from itself."""
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    if arrived:
        case.cluster.network.rule("take_over", "answer", delay=2.0)
        case.cluster.move(0, case.new)
        case.cluster.run(lambda: bool(case.new.host.queues))
    else:
        case.leave()
    case.cluster.kill(case.new)
    assert case.cluster.finish(futures, seconds=60.0) == [1] * 5
    assert only_one(case.cluster) == Place(case.before.uuid, "w0", 2, True)
    assert not case.cluster.reruns


def test_i14_the_new_host_dies_after_the_switch() -> None:
    """A loss like any other, if the old one did not hear yet that it may forget."""
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    case.cluster.network.rule("drop", delay=5.0)
    case.cluster.moved(0, case.new)
    case.cluster.kill(case.new)
    assert case.cluster.finish(futures, seconds=120.0) == [1] * 5
    place = only_one(case.cluster)
    assert place.uuid != case.before.uuid
    assert place.epoch == 2


def test_i14_both_die() -> None:
    """The client has everything that is needed."""
    case = Moving()
    futures = case.client.submit(5, 10.0, value=1)
    case.cluster.run(seconds=1.0)
    case.leave()
    case.cluster.kill(case.old)
    case.cluster.kill(case.new)
    assert case.cluster.finish(futures, seconds=120.0) == [1] * 5
    assert only_one(case.cluster).address == "w2"


def test_i14_the_pool_ends_meanwhile() -> None:
    """Wherever the queue is, or arrives, it is dropped."""
    case = Moving()
    case.leave()
    case.cluster.scheduler.carry_out(case.cluster.directory.close("pool"))
    case.cluster.run(seconds=10.0)
    assert not any(worker.host.queues or worker.host.leaving for worker in case.cluster.workers)


@SOAKS
def test_i14_soak(seeds: range) -> None:
    """Hosts die around the moves: one queue and one epoch of each, and every task ends once and right."""
    for seed in seeds:
        random = Random(seed)
        cluster, _ = started(2, 2, 1, n_queues=2, clients=2)
        cluster.network.chance = Chance(random, drop=0.03, twice=0.03, slow=0.1, slowest_s=random.choice([0.1, 3.0]))
        victims = random.sample(cluster.workers, 2)
        for victim in victims:
            silent = random.random() < 0.3
            cluster.scheduler.later(random.uniform(0.1, 4.0), partial(cluster.kill, victim, silent=silent))
        futures: list[SimFuture] = []
        for _ in range(10):
            for index in range(2):
                cluster.move(index, random.choice(cluster.workers))
            futures += traffic(cluster, random)
        cluster.end(futures, seconds=900.0)
        check_futures(cluster, futures)
        cluster.run(seconds=60.0)
        only_one(cluster)
        assert [cluster.queue(index).unfinished for index in range(2)] == [0, 0]


# -- 16


def test_i16_a_callback_submits_with_the_window_full() -> None:
    """Outcomes overtake the answers of their puts, so the window is full at each callback: no deadlock."""
    cluster, client = started(1, window=1)
    slow = cluster.network.rule("admit", "answer", delay=0.5, times=None)
    in_flight: list[int] = []
    order: list[int] = []

    def submit(number: int) -> None:
        (future,) = client.submit(value=number)
        future.when_done(go_on)

    def go_on(future: SimFuture) -> None:
        in_flight.append(client.streams[0].in_flight)
        order.append(future.result())
        if len(order) < 100:
            submit(len(order))

    submit(0)
    cluster.run(lambda: len(order) == 100)
    assert order == list(range(100))
    assert in_flight == [1] * 100
    assert len(slow.hits) == 100


# -- 19


def hour_in_a_lease(cluster: SimCluster) -> list[SimFuture]:
    """2,500 fast ones in one lease, but the third takes an hour."""
    cluster.start()
    train(cluster.workers[1], FAST_S)
    client = cluster.clients[0]
    client.submit(function=b"g")  # so that its next request knows the function
    granted = cluster.network.watch(
        "lease", "answer", target="w1", where=lambda answer: answer[1] and len(answer[1]) > 1
    )
    cluster.run(seconds=1.0)
    works = [SimWork(3600.0 if number == 2 else FAST_S, number) for number in range(2500)]
    futures = client.submit(works=works, block=True)
    cluster.worker(1)
    cluster.run(lambda: bool(starts(cluster, futures[2])))
    assert len(granted.hits[0].content[1]) == 2500
    return futures


def test_i19_one_of_a_lease_takes_an_hour() -> None:
    """The worker gives back what has not begun: that is done elsewhere within a second."""
    cluster = build(1)
    futures = hour_in_a_lease(cluster)
    cluster.finish(futures[3:], seconds=1.0)
    assert not futures[2].done
    assert cluster.finish(futures, seconds=3601.0) == list(range(2500))
    assert not cluster.reruns


def test_i19_without_giving_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then they wait behind it."""
    monkeypatch.setattr(Pacer, "overstay_after", lambda *_: 1e6)
    cluster = build(1)
    futures = hour_in_a_lease(cluster)
    cluster.run(seconds=600.0)
    assert sum(future.done for future in futures) == 0


# -- 20


def test_i20_a_client_reconnects() -> None:
    """Its connections broke and it is back within the grace: pool and futures live on."""
    cluster, client = started(1)
    (future,) = client.submit(seconds=100.0, value=1)
    cluster.run(seconds=5.0)
    cluster.disconnect(client)
    cluster.run(seconds=50.0)
    cluster.result(client, client.reconnect)
    assert cluster.finish([future, *client.submit(value=2)]) == [1, 2]
    cluster.run(seconds=120.0)
    assert cluster.finish(client.submit(value=3)) == [3]


def test_i20_without_the_reconnect() -> None:
    """Then the pool, which is the client's own, ends after the grace, and the futures with it."""
    cluster, client = started(1)
    (future,) = client.submit(seconds=100.0, value=1)
    cluster.run(seconds=5.0)
    cluster.disconnect(client)
    cluster.run(lambda: future.done, seconds=90.0)
    assert isinstance(future.error, QueueLost)
    assert isinstance(client.over, PoolGone)


# -- what section 5 adds


def test_a_lost_owner_gets_no_lease() -> None:
    """A request that arrives after the directory gave its sender up is not granted: nobody would end that lease."""
    cluster, client = started(1)
    (waiting,) = client.submit(seconds=1.0)
    cluster.finish([waiting])
    cluster.scheduler.worker_left("w1")
    cluster.run(seconds=0.1)
    cluster.worker(1)
    (future,) = client.submit(seconds=1.0, value=1)
    assert cluster.finish([future], seconds=10.0) == [1]
    assert places(cluster, future) == ["w2"]


def test_a_dead_machine_is_noticed_late() -> None:
    """What its open request was granted meanwhile goes back when the directory gives the machine up."""
    cluster, client = started(1)
    cluster.kill(cluster.workers[1], silent=True)
    (future,) = client.submit(seconds=1.0, value=1)
    cluster.run(seconds=10.0)
    assert cluster.queue().stats().delivered == 1
    cluster.worker(1)
    assert cluster.finish([future], seconds=25.0) == [1]


@pytest.mark.parametrize("resubmit", [True, False])
def test_a_host_dies(resubmit: bool) -> None:
    """The client puts the unfinished again into the queue's next life, or ends them with `QueueLost`."""
    cluster, client = started(1, 1, n_queues=2, resubmit=resubmit)
    futures = client.submit(50, 0.1, value=1, queue=0) + client.submit(50, 0.1, value=2, queue=1)
    cluster.run(seconds=1.0)
    done = [future.done for future in futures]
    assert True in done
    assert False in done
    cluster.kill(cluster.workers[0])
    cluster.end(futures, seconds=60.0)
    failed = [future for future in futures if future.error is not None]
    assert bool(failed) is not resubmit
    assert all(isinstance(future.error, QueueLost) and future.number < 50 for future in failed)
    assert not any(done[future.number] for future in failed)
    assert cluster.result(client, client.join) >= 2


# -- all at once


@pytest.mark.parametrize(
    "seeds",
    [*SEEDS[:2], *(pytest.param(seeds, marks=pytest.mark.slow) for seeds in SEEDS[2:])],
    ids=lambda seeds: str(seeds.start),
)
def test_soak(seeds: range) -> None:
    """By chance lost, slow, doubled and overtaken messages, a dead worker and a dead host: all ends once, and right."""
    for seed in seeds:
        soak(Random(seed))


def soak(random: Random) -> None:
    """One course of events."""
    cluster, _ = started(2, 2, 1, n_queues=2, clients=2)
    cluster.network.chance = Chance(random, drop=0.03, twice=0.03, slow=0.1, slowest_s=random.choice([0.1, 3.0]))
    victims = [random.choice(cluster.workers[:2]), random.choice(cluster.workers[2:])]
    lost_queues: set[str] = set()

    def kill(worker: SimWorker) -> None:
        lost_queues.update(worker.host.queues)
        cluster.kill(worker)

    for victim in victims:
        cluster.scheduler.later(random.uniform(0.1, 5.0), lambda victim=victim: kill(victim))
    futures: list[SimFuture] = []
    for _ in range(10):
        client = random.choice(cluster.clients)
        seconds = random.choice([0.0, 0.0001, 0.01, 0.05])
        count = random.randrange(1, 40)
        base = len(futures)
        works = [SimWork(seconds, base + at, fail if at % 7 == 3 else None) for at in range(count)]
        futures += client.submit(works=works, block=random.random() < 0.5, function=str(seconds).encode())
        cluster.run(seconds=random.uniform(0.0, 0.5))
    cluster.end(futures, seconds=900.0)
    for at, future in enumerate(futures):
        if future.error is None:
            assert future.value == at
        else:
            assert isinstance(future.error, ZeroDivisionError)
            assert cluster.works[future.work].run is fail
    dead = {victim.address for victim in victims}
    for began in cluster.reruns.values():
        excused = [start for start in began if start.worker in dead or start.queue in lost_queues]
        assert len(began) - len(excused) <= 1, began
    for client in cluster.clients:
        assert cluster.result(client, client.join) >= 2
    cluster.run(seconds=3.0)
    held = [book.held for worker in cluster.workers if worker.alive for book in worker.consumer.books.values()]
    assert not any(held)
    assert all(cluster.queue(index).stats().unfinished == 0 for index in range(2))


def fail() -> None:
    """A task that fails."""
    raise ZeroDivisionError
