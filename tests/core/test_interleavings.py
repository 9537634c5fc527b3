"""The interleavings of the semantics that must come out right, over the simulated network.

Each `test_iNN` lets its case happen, and asserts that it did. Its neighbour `test_iNN_without_...` takes the cure out
and shows the harm, so that the first one is known to watch something. Numbers are those of the semantics' table; those
missing here need hand-over or a durable queue.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from daskqueue_core.admission import Admission
from daskqueue_core.consumer import Heartbeat, LeaseBook
from daskqueue_core.errors import QueueLost, WorkerCrashed
from daskqueue_core.joining import JoinRounds
from daskqueue_core.leases import Leases
from daskqueue_core.outcomes import Outcome
from daskqueue_core.pacing import Pacer
from daskqueue_core.queue import TransientQueue
from daskqueue_core.testing import (
    Chance,
    PoolGone,
    SimCancelled,
    SimClient,
    SimCluster,
    SimFuture,
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
    stale = 500 + 500  # w2 said its half again, as the request that it rode on was given up
    assert cluster.queue().stats().stale == stale


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


SEEDS = [range(at, at + 20) for at in range(0, 200, 20)]


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
