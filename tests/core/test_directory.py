"""The directory: places, orders, what happens when workers and clients come and go."""

import math
import random
from itertools import count
from typing import Any

import pytest

from daskqueue_core.directory import (
    Consume,
    ConsumersOf,
    Directory,
    Drop,
    Host,
    Place,
    Release,
    StopConsuming,
    TakeOver,
    differences,
    newest,
)
from daskqueue_core.placing import REMEMBERED_OWNERS

A, B, C = "tcp://a", "tcp://b", "tcp://c"


@pytest.fixture
def directory() -> Directory:
    """An empty directory; queues are called u0, u1, ..."""
    numbers = count()
    return Directory(lambda: f"u{next(numbers)}")


def join(directory: Directory, *addresses: str) -> list[Any]:
    """Workers join, in their first incarnation."""
    return [order for address in addresses for order in directory.worker_joined(address, f"{address}#1", 2)]


def open_pool(
    directory: Directory, n: int = 1, name: str = "p", client: str = "c1", *, owned: bool = True
) -> list[Any]:
    """Open a pool."""
    return directory.open(name, {"n_queues": n}, n, client=client, owned=owned)


def fail(directory: Directory, uuid: str, epoch: int, pool: str = "p") -> list[Any]:
    """The worker that was told to host a queue did not."""
    return list(directory.host_failed(pool, uuid, epoch))


def consume(directory: Directory, count: int | None, id: str = "k", pool: str = "p", **options: Any) -> list[Any]:
    """Start a consumer pool."""
    fields = {"kinds": (0, 1), "early_ack": False, **options}
    return directory.start_consumers(pool, id, {"spec": id}, count=count, **fields)


def addresses(directory: Directory, pool: str = "p") -> list[str]:
    """Where a pool's queues are."""
    return [place.address for place in directory.pools[pool].places]


def counts(orders: list[Any]) -> dict[str, int]:
    """How many consumers each worker is told to run."""
    return {order.address: order.count for order in orders if isinstance(order, Consume)}


# -- opening


def test_open_on_the_least_loaded(directory: Directory) -> None:
    """Queues are spread, over pools too; each order says what to host."""
    join(directory, A, B)
    first = open_pool(directory, 3)
    assert first[0] == Host(A, "p", 0, "u0", 0, {"n_queues": 3}, ())
    assert [(order.address, order.index, order.uuid) for order in first] == [(A, 0, "u0"), (B, 1, "u1"), (A, 2, "u2")]
    assert [order.address for order in open_pool(directory, 2, "q")] == [B, A]
    join(directory, C)
    assert [order.address for order in open_pool(directory, 4, "r")] == [C, C, B, C]


def test_a_place_is_up_when_its_host_says_so(directory: Directory) -> None:
    """Not when it was told to."""
    join(directory, A)
    open_pool(directory, 2)
    assert [place.up for place in directory.pools["p"].places] == [False, False]
    directory.hosted("p", "u1", 0)
    assert directory.pools["p"].places == [Place("u0", A, 0, False), Place("u1", A, 0, True)]
    directory.hosted("p", "unknown", 0)
    directory.hosted("unknown", "u0", 0)
    assert [place.up for place in directory.pools["p"].places] == [False, True]


def test_open_without_workers(directory: Directory) -> None:
    """The queues wait for a host; the first worker gets them, expecting nobody to put again."""
    assert open_pool(directory, 2) == []
    assert addresses(directory) == ["", ""]
    orders = join(directory, A)
    assert [(order.address, order.uuid, order.epoch, order.expected) for order in orders] == [
        (A, "u0", 0, ()),
        (A, "u1", 0, ()),
    ]


def test_attach(directory: Directory) -> None:
    """Another client takes part; there must be such a pool."""
    join(directory, A)
    open_pool(directory)
    record = directory.attach("p", "c2")
    assert record is directory.pools["p"]
    assert record.clients == {"c1", "c2"}
    assert directory.attach("unknown", "c2") is None


def test_differences() -> None:
    """What differs, existing and asked; what is missing is None."""
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 2}) == {}
    assert differences({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": (1, None), "b": (2, 3), "c": (None, 4)}


def test_newest() -> None:
    """An answer that was overtaken brings no old life back, queue by queue; of the same life, the answer counts."""
    known = [Place("u0", A, 2, False), Place("u1", A, 2, True), Place("u2", A, 2, True)]
    told = [Place("u0", A, 2, True), Place("old", B, 1, True), Place("new", B, 3, False)]
    assert newest(known, told) == [told[0], known[1], told[2]]
    assert newest([], told) == told


def test_close(directory: Directory) -> None:
    """Consumers stop and queues are dropped; again, there is nothing to do."""
    join(directory, A, B)
    open_pool(directory, 2)
    consume(directory, None)
    orders = directory.close("p")
    assert orders == [
        StopConsuming(A, "k", drain=False),
        StopConsuming(B, "k", drain=False),
        Drop(A, "p", "u0", 0),
        Drop(B, "p", "u1", 0),
    ]
    assert directory.close("p") == []
    assert directory.pools == {}


def test_close_without_a_host(directory: Directory) -> None:
    """A queue that is nowhere is dropped nowhere."""
    open_pool(directory)
    assert directory.close("p") == []


# -- workers


def test_workers(directory: Directory) -> None:
    """Those that are here."""
    join(directory, A, B)
    directory.worker_left(A)
    assert directory.workers == [B]
    assert directory.worker_left(A) == []


def test_a_worker_that_joins_again(directory: Directory) -> None:
    """The same incarnation: nothing happens."""
    join(directory, A)
    open_pool(directory)
    assert join(directory, A) == []
    assert addresses(directory) == [A]


def test_a_worker_in_another_incarnation(directory: Directory) -> None:
    """The old one is lost: its leases go back, its queues get a new life, on the new one if there is no other."""
    join(directory, A, B)
    open_pool(directory, 2)
    consume(directory, 2)
    orders = directory.worker_joined(A, "a#2", 2)
    assert orders[0] == Release(B, f"{A}#1")
    assert [(order.address, order.uuid) for order in orders if isinstance(order, Host)] == [(B, "u2")]
    assert directory.workers == [B, A]


def test_a_lost_host(directory: Directory) -> None:
    """Its queues live again elsewhere: new uuid, next epoch, not up; all the pool's clients are expected."""
    join(directory, A, B)
    open_pool(directory, 2)
    directory.attach("p", "c2")
    directory.hosted("p", "u0", 0)
    directory.hosted("p", "u1", 0)
    orders = directory.worker_left(A)
    assert orders == [Release(B, f"{A}#1"), Host(B, "p", 0, "u2", 1, {"n_queues": 2}, ("c1", "c2"))]
    assert directory.pools["p"].places == [Place("u2", B, 1, False), Place("u1", B, 0, True)]


def test_a_lost_consumer_is_released_everywhere(directory: Directory) -> None:
    """Every host of any pool takes its leases back, once."""
    join(directory, A, B, C)
    open_pool(directory, 2, "p")
    open_pool(directory, 2, "q")
    orders = directory.worker_left(C)
    releases = [order for order in orders if isinstance(order, Release)]
    assert releases == [Release(A, f"{C}#1"), Release(B, f"{C}#1")]


def test_the_last_host_is_lost(directory: Directory) -> None:
    """Its queues wait, under a new uuid already, and the next worker gets them, expecting the clients."""
    join(directory, A)
    open_pool(directory)
    assert directory.worker_left(A) == []
    assert directory.pools["p"].places == [Place("u1", "", 1, False)]
    assert join(directory, B) == [Host(B, "p", 0, "u1", 1, {"n_queues": 1}, ("c1",))]


def test_epochs_go_up(directory: Directory) -> None:
    """With each life."""
    join(directory, A)
    open_pool(directory)
    for epoch, address in enumerate((B, C, A), 1):
        join(directory, address)
        directory.worker_left(addresses(directory)[0])
        assert directory.pools["p"].places[0].epoch == epoch


def test_a_host_that_failed(directory: Directory) -> None:
    """Another one tries, with a new uuid; the same again only if there is no other."""
    join(directory, A, B)
    open_pool(directory)
    [order] = fail(directory, "u0", 0)
    assert (order.address, order.uuid, order.epoch) == (B, "u1", 1)
    directory.worker_left(A)
    assert fail(directory, "u1", 0) == [], "of an order that it never had"
    [order] = fail(directory, "u1", 1)
    assert (order.address, order.uuid) == (B, "u2")


def test_an_old_failure(directory: Directory) -> None:
    """Of a life that is over, or a pool that is: nothing to do."""
    join(directory, A, B)
    open_pool(directory)
    fail(directory, "u0", 0)
    assert fail(directory, "u0", 0) == []
    assert directory.host_failed("unknown", "u1", 0) == []


# -- durable queues


def open_durable(directory: Directory, *uuids: str) -> list[Any]:
    """A pool of queues that have directories."""
    return directory.open("d", {}, len(uuids), client="c1", owned=False, uuids=uuids)


def test_a_durable_queue_keeps_its_uuid(directory: Directory) -> None:
    """Whatever becomes of its hosts; each order has a new epoch, and says who is here to keep leases."""
    join(directory, A, B)
    [host] = open_durable(directory, "x")
    assert (host.uuid, host.epoch, host.expected) == ("x", 0, ())
    directory.hosted("d", "x", 0)
    orders = directory.worker_left(host.address)
    [again] = [order for order in orders if isinstance(order, Host)]
    assert (again.uuid, again.epoch, again.expected) == ("x", 1, ())
    assert [owner.partition("#")[0] for owner in again.owners] == [again.address]
    assert not directory.pools["d"].places[0].up
    directory.hosted("d", "x", 0)
    assert not directory.pools["d"].places[0].up, "that was its host before"
    directory.hosted("d", "x", 1)
    assert directory.pools["d"].places[0].up


def test_a_durable_queue_hears_who_was_lost(directory: Directory) -> None:
    """The last of those that were here and are gone: what they ran is suspect. Nobody of an earlier cluster is."""
    join(directory, A, B)
    [host] = open_durable(directory, "x")
    assert host.lost == ()
    [again] = [order for order in directory.worker_left(host.address) if isinstance(order, Host)]
    assert [owner.partition("#")[0] for owner in again.lost] == [host.address]
    for number in range(REMEMBERED_OWNERS + 5):
        directory.worker_joined(C, f"{C}#{number + 100}", 1)
    [last] = [order for order in directory.worker_left(again.address) if isinstance(order, Host)]
    assert len(last.lost) == REMEMBERED_OWNERS
    assert last.lost[-1] == again.owners[0]


def test_an_owner_lost_while_a_durable_queue_is_opened(directory: Directory) -> None:
    """Its host was told that it is here: it hears of the loss when it serves, or those leases would stay."""
    join(directory, A, B, C)
    [host] = open_durable(directory, "x")
    directory.hosted("d", "x", 0)
    [again] = [order for order in directory.worker_left(host.address) if isinstance(order, Host)]
    other = ({A, B, C} - {host.address, again.address}).pop()
    directory.worker_left(other)
    assert directory.hosted("d", "x", again.epoch) == [Release(again.address, f"{other}#1")]
    assert directory.hosted("d", "x", again.epoch) == []


def test_each_worker_tries_a_durable_queue_once(directory: Directory) -> None:
    """And when none could, all are asked once more; a worker that joins is asked as well."""
    join(directory, A, B, C)
    [order] = open_durable(directory, "x")
    asked = [order.address]
    for _ in range(5):
        [order] = fail(directory, "x", order.epoch, "d")
        asked.append(order.address)
    assert set(asked[:3]) == set(asked[3:]) == {A, B, C}
    directory.worker_left(A)
    directory.worker_left(B)
    directory.worker_left(C)
    assert directory.pools["d"].places[0].address == ""
    [order] = [order for order in directory.worker_joined(A, A + "#2", 1) if isinstance(order, Host)]
    assert (order.address, order.uuid) == (A, "x")


def test_why_a_queue_has_no_host(directory: Directory) -> None:
    """What the last worker that tried has said, until one serves it."""
    directory.worker_joined("a", "a#1", 1)
    [_, order] = open_durable(directory, "x", "y")
    assert directory.trouble("d") == ("", "")
    [again] = directory.host_failed("d", "y", order.epoch, ("NotAQueue", "there is nothing"))
    assert directory.trouble("d") == ("", "NotAQueue: there is nothing")
    [last] = directory.host_failed("d", "y", again.epoch, ("", "it hangs"))
    assert directory.trouble("d") == ("", "it hangs")
    directory.hosted("d", "y", last.epoch)
    assert directory.trouble("d") == ("", "")
    assert directory.trouble("nobody's") == ()


def test_a_durable_pool_that_comes_again(directory: Directory) -> None:
    """Its queues have epochs that they never had."""
    join(directory, A)
    [first] = open_durable(directory, "x")
    directory.worker_left(A)
    join(directory, A)
    directory.close("d")
    [again] = open_durable(directory, "x")
    assert (first.epoch, again.epoch) == (0, 2)


def test_a_durable_queue_is_not_moved(directory: Directory) -> None:
    """Its directory is closed here and opened there."""
    join(directory, A, B)
    [order] = open_durable(directory, "x")
    directory.hosted("d", "x", order.epoch)
    other = next(address for address in (A, B) if address != order.address)
    assert directory.move("d", 0, other) == []


# -- consumers


def test_one_consumer_on_each_worker(directory: Directory) -> None:
    """Also on those that come later."""
    join(directory, A, B)
    open_pool(directory)
    orders = consume(directory, None)
    assert orders[0] == Consume(A, "p", "k", 1, {"spec": "k"})
    assert counts(orders) == {A: 1, B: 1}
    assert counts(join(directory, C)) == {C: 1}


@pytest.mark.parametrize(("number", "expected"), [(1, {A: 1}), (2, {A: 1, B: 1}), (5, {A: 3, B: 2})])
def test_a_number_of_consumers(directory: Directory, number: int, expected: dict[str, int]) -> None:
    """Round robin over the workers."""
    join(directory, A, B)
    open_pool(directory)
    assert counts(consume(directory, number)) == expected


def test_consumers_without_workers(directory: Directory) -> None:
    """They start with the first worker."""
    open_pool(directory)
    assert consume(directory, 3) == []
    assert counts(join(directory, A)) == {A: 3}


def test_lost_consumers_are_placed_again(directory: Directory) -> None:
    """The number stays what was asked for; those that run stay where they are."""
    join(directory, A, B, C)
    open_pool(directory)
    consume(directory, 3)
    assert counts(directory.worker_left("unknown")) == {}
    assert counts(directory.worker_left(C)) == {A: 2}
    assert counts(directory.worker_left(A)) == {B: 3}
    assert counts(directory.worker_left(B)) == {}
    assert counts(join(directory, A)) == {A: 3}


def test_consumers_spread_when_workers_join(directory: Directory) -> None:
    """Eight that began on one worker end up on eight, and each order moves no more than it must."""
    workers = [f"tcp://{n}" for n in range(8)]
    join(directory, workers[0])
    open_pool(directory)
    consume(directory, 8)
    assert counts(join(directory, workers[1])) == {workers[0]: 4, workers[1]: 4}
    assert counts(join(directory, workers[2])) == {workers[0]: 3, workers[1]: 3, workers[2]: 2}
    assert counts(join(directory, workers[3])) == {workers[0]: 2, workers[1]: 2, workers[3]: 2}
    join(directory, *workers[4:])
    assert directory.pools["p"].consumers["k"].placed == dict.fromkeys(workers, 1)


def test_consumers_spread_after_a_restart(directory: Directory) -> None:
    """All workers leave, others come one by one."""
    join(directory, A, B)
    open_pool(directory)
    consume(directory, 4)
    directory.worker_left(A)
    directory.worker_left(B)
    assert counts(join(directory, C)) == {C: 4}
    assert counts(join(directory, "tcp://d")) == {C: 2, "tcp://d": 2}


def test_fewer_consumers_than_workers(directory: Directory) -> None:
    """The surplus has none, and a worker that joins takes none away."""
    join(directory, A, B)
    open_pool(directory)
    consume(directory, 2)
    assert join(directory, C) == []
    assert directory.pools["p"].consumers["k"].placed == {A: 1, B: 1}


def test_consumers_a_worker_cannot_run(directory: Directory) -> None:
    """Others run them; it is not asked again before it has left, and comes back as a new one."""
    join(directory, A)
    open_pool(directory)
    consume(directory, 3)
    assert counts(join(directory, B)) == {A: 2, B: 1}
    assert counts(directory.consume_failed("p", "k", B)) == {A: 3}
    assert directory.consume_failed("p", "k", B) == []
    assert directory.consume_failed("p", "unknown", B) == []
    assert directory.consume_failed("unknown", "k", B) == []
    assert counts(join(directory, C)) == {A: 2, C: 1}
    assert directory.stop_consumers("p", "k", drain=False) == [
        StopConsuming(A, "k", False),
        StopConsuming(C, "k", False),
    ]


def test_consumers_that_no_worker_can_run(directory: Directory) -> None:
    """They wait for one that can; one on each is not asked again where it failed."""
    join(directory, A)
    open_pool(directory)
    consume(directory, 2)
    consume(directory, None, "each")
    assert directory.consume_failed("p", "k", A) == []
    assert directory.consume_failed("p", "each", A) == []
    assert counts(join(directory, B)) == {B: 1}
    assert {id: record.placed for id, record in directory.pools["p"].consumers.items()} == {"k": {B: 2}, "each": {B: 1}}
    directory.worker_left(A)
    assert [order.consumers for order in directory.worker_joined(A, f"{A}#2", 2) if isinstance(order, Consume)] == [
        "k",
        "k",
        "each",
    ]


def began(directory: Directory, address: str, time_left: float, now: float = 0.0, id: str = "k") -> None:
    """The consumers on a worker are set up."""
    directory.consumers_began("p", id, address, time_left, now)


def left(directory: Directory, address: str, id: str = "k") -> list[Any]:
    """The consumers on a worker have stopped: its job ends soon."""
    return list(directory.consumers_left("p", id, address))


def test_consumers_leave_before_their_worker(directory: Directory) -> None:
    """Others take their place, they do not come back, and hear of the end of their pool: some may still run."""
    join(directory, A, B)
    open_pool(directory)
    consume(directory, 3)
    assert counts(left(directory, A)) == {B: 3}
    assert left(directory, A) == []
    assert counts(join(directory, C)) == {B: 2, C: 1}
    assert directory.pools["p"].consumers["k"].placed == {B: 2, C: 1}
    assert directory.stop_consumers("p", "k", drain=True) == [
        StopConsuming(B, "k", True),
        StopConsuming(C, "k", True),
        StopConsuming(A, "k", True),
    ]


def test_a_worker_that_was_left_comes_back(directory: Directory) -> None:
    """In another life, which has another end."""
    join(directory, A)
    open_pool(directory)
    consume(directory, None)
    assert left(directory, A) == []
    assert directory.served("p")[0].left == (A,)
    directory.worker_left(A)
    orders = directory.worker_joined(A, f"{A}#2", 2)
    assert counts(orders) == {A: 1}
    assert directory.served("p")[0].left == ()
    assert directory.served("p")[0].time_left == math.inf


def test_who_left_what(directory: Directory) -> None:
    """Nothing is known of pools, consumers and workers that are gone."""
    join(directory, A)
    assert directory.consumers_left("p", "k", A) == []
    directory.consumers_began("p", "k", A, 1.0, 0.0)
    open_pool(directory)
    consume(directory, 1)
    assert left(directory, A, "other") == []
    assert left(directory, B) == []
    began(directory, B, 9.0)
    assert directory.pools["p"].consumers["k"].ends == {}
    left(directory, A)
    assert directory.close("p")[0] == StopConsuming(A, "k", drain=False)


def test_time_left(directory: Directory) -> None:
    """That of the worker that lasts longest, of those that run some; and what others may have."""
    join(directory, A, B)
    open_pool(directory)
    consume(directory, 2)
    began(directory, A, 100.0, now=1000.0)
    assert directory.served("p", 1000.0)[0].time_left == math.inf, "nothing is known of B"
    began(directory, B, 50.0, now=1000.0)
    (served,) = directory.served("p", 1060.0)
    assert (served.running, served.time_left, served.longest) == (2, 40.0, 100.0)
    left(directory, A)
    (served,) = directory.served("p", 1060.0)
    assert (served.running, served.time_left, served.left) == (2, -10.0, (A,))
    assert served.serve(1, ()), "it still runs"
    left(directory, B)
    (served,) = directory.served("p", 1060.0)
    assert (served.running, served.time_left, served.longest) == (0, 0.0, 100.0)


def test_whom_work_is_for() -> None:
    """Kind, tags and time must fit."""
    some = ConsumersOf((1,), ("a",), 2, 0, 100.0, (), 500.0)
    assert some.serve(1, ())
    assert some.serve(1, ("a", "time>=100"))
    assert not some.serve(0, ())
    assert not some.serve(1, ("b",))
    assert not some.serve(1, ("time>=101",))
    assert some.serve(1, ("time>=101",), soon=True)
    assert not some.serve(1, ("time>=501",), soon=True)
    none = some._replace(running=0)
    assert not none.serve(1, ())
    assert none.serve(1, (), soon=True)


def test_a_lost_worker_without_consumers(directory: Directory) -> None:
    """Nobody else is told anything about consumers."""
    join(directory, A, B)
    open_pool(directory)
    consume(directory, 1)
    assert counts(directory.worker_left(B)) == {}


def test_one_on_each_needs_no_replacement(directory: Directory) -> None:
    """When a worker goes, its consumer goes."""
    join(directory, A, B)
    open_pool(directory)
    consume(directory, None)
    assert counts(directory.worker_left(B)) == {}
    assert directory.pools["p"].consumers["k"].placed == {A: 1}


def test_start_twice(directory: Directory) -> None:
    """A repeated start changes nothing."""
    join(directory, A)
    open_pool(directory)
    consume(directory, 1)
    assert consume(directory, 1) == []


def test_early_ack_is_remembered(directory: Directory) -> None:
    """A pool that ever had such a consumer acts accordingly for ever."""
    join(directory, A)
    open_pool(directory)
    consume(directory, 1, early_ack=True)
    directory.stop_consumers("p", "k", drain=False)
    consume(directory, 1, "other")
    assert directory.pools["p"].early_ack


@pytest.mark.parametrize("drain", [True, False])
def test_stop_consumers(directory: Directory, drain: bool) -> None:
    """Where they run, once; they do not come back with a new worker."""
    join(directory, A, B)
    open_pool(directory)
    consume(directory, 2)
    assert directory.stop_consumers("p", "k", drain=drain) == [
        StopConsuming(A, "k", drain),
        StopConsuming(B, "k", drain),
    ]
    assert directory.stop_consumers("p", "k", drain=drain) == []
    assert directory.stop_consumers("unknown", "k", drain=drain) == []
    assert join(directory, C) == []


# -- clients


def test_an_owned_pool_ends_with_its_client(directory: Directory) -> None:
    """Others do not."""
    join(directory, A)
    open_pool(directory, 1, "mine", "c1")
    open_pool(directory, 1, "theirs", "c2")
    open_pool(directory, 1, "named", "c1", owned=False)
    assert directory.client_left("c1") == [Drop(A, "mine", "u0", 0)]
    assert sorted(directory.pools) == ["named", "theirs"]


def test_a_client_that_left_is_not_expected(directory: Directory) -> None:
    """Nobody waits for it to put again."""
    join(directory, A, B)
    open_pool(directory, owned=False)
    directory.attach("p", "c2")
    directory.client_left("c1")
    [host] = [order for order in directory.worker_left(A) if isinstance(order, Host)]
    assert host.expected == ("c2",)


def test_a_guest_that_left_ends_nothing(directory: Directory) -> None:
    """A pool belongs to the client that opened it."""
    join(directory, A)
    open_pool(directory)
    directory.attach("p", "c2")
    assert directory.client_left("c2") == []
    assert directory.client_left("unknown") == []
    assert list(directory.pools) == ["p"]


# -- moves


@pytest.fixture
def moving(directory: Directory) -> Directory:
    """Queue u0 is at A, under epoch 0, and is ordered to B, under epoch 1; C is there too."""
    join(directory, A, B, C)
    open_pool(directory)
    directory.hosted("p", "u0", 0)
    assert directory.move("p", 0, B) == [TakeOver(B, "p", 0, "u0", 1, A, {"n_queues": 1})]
    assert directory.pools["p"].places == [Place("u0", A, 0, True)]
    return directory


def test_a_move(moving: Directory) -> None:
    """The place is switched when the new host serves; then the old one may forget."""
    assert moving.moved("p", "u0", 1) == [Drop(A, "p", "u0", 0)]
    assert moving.pools["p"].places == [Place("u0", B, 1, True)]
    assert moving.moved("p", "u0", 1) == []
    assert moving.move("p", 0, A) == [TakeOver(A, "p", 0, "u0", 2, B, {"n_queues": 1})]


def test_what_cannot_be_moved(moving: Directory) -> None:
    """What is about to move, to where it is, to nowhere, or is not there: nothing is ordered."""
    assert moving.move("p", 0, C) == []
    moving.moved("p", "u0", 1)
    assert moving.move("p", 0, B) == []
    assert moving.move("p", 0, "tcp://unknown") == []
    assert moving.move("p", 1, A) == []
    assert moving.move("p", -1, A) == []
    assert moving.move("unknown", 0, A) == []
    moving.worker_left(B)
    assert moving.pools["p"].places == [Place("u1", A, 2, False)]
    assert moving.move("p", 0, C) == []


def test_a_move_that_failed(moving: Directory) -> None:
    """The old host takes the queue over from itself; what the new one may have of it is dropped."""
    home = TakeOver(A, "p", 0, "u0", 2, A, {"n_queues": 1})
    assert moving.move_failed("p", "u0", 1) == [Drop(B, "p", "u0", 1), home]
    assert moving.pools["p"].places == [Place("u0", A, 0, True)]
    assert moving.moved("p", "u0", 1) == []
    assert moving.move_failed("p", "u0", 1) == []
    assert moving.moved("p", "u0", 2) == []
    assert moving.pools["p"].places == [Place("u0", A, 2, True)]


def test_not_even_at_home(moving: Directory) -> None:
    """Then it is lost, and everything of it is dropped."""
    moving.move_failed("p", "u0", 1)
    orders = moving.move_failed("p", "u0", 2)
    assert orders == [Drop(A, "p", "u0", 2), Host(B, "p", 0, "u1", 3, {"n_queues": 1}, ("c1",))]
    assert moving.move_failed("p", "u0", 2) == []


def test_the_new_host_is_lost_before_the_switch(moving: Directory) -> None:
    """The same, and nobody is left there to drop anything. The lost owner is named when it has arrived."""
    owner = f"{B}#1"
    assert moving.worker_left(B) == [Release(A, owner), TakeOver(A, "p", 0, "u0", 2, A, {"n_queues": 1})]
    assert moving.moved("p", "u0", 2) == [Release(A, owner)]
    assert moving.pools["p"].places == [Place("u0", A, 2, True)]


def test_the_old_host_is_lost_before_the_switch(moving: Directory) -> None:
    """Who takes it over knows whether that was in time; until it says so, nobody else hosts it."""
    assert moving.worker_left(A) == []
    assert moving.pools["p"].places == [Place("u0", "", 0, False)]
    assert join(moving, "tcp://d") == []
    assert moving.moved("p", "u0", 1) == [Release(B, f"{A}#1")]
    assert moving.pools["p"].places == [Place("u0", B, 1, True)]


def test_the_old_host_is_lost_with_the_queue(moving: Directory) -> None:
    """It was not in time: another life."""
    moving.worker_left(A)
    orders = moving.move_failed("p", "u0", 1)
    assert orders == [Drop(B, "p", "u0", 1), Host(C, "p", 0, "u1", 2, {"n_queues": 1}, ("c1",))]


def test_both_hosts_are_lost(moving: Directory) -> None:
    """One after the other, in any order."""
    moving.worker_left(A)
    assert moving.worker_left(B) == [Host(C, "p", 0, "u1", 2, {"n_queues": 1}, ("c1",))]
    assert moving.moved("p", "u0", 1) == []


def test_home_is_lost_on_the_way_back(moving: Directory) -> None:
    """The new host first, then the old one: another life, and no order to the dead."""
    moving.worker_left(B)
    assert moving.worker_left(A) == [Host(C, "p", 0, "u1", 3, {"n_queues": 1}, ("c1",))]


def test_owners_that_were_lost_meanwhile(moving: Directory) -> None:
    """The old host may not have heard, and the new one could not; leases of others that are not here go back, too."""
    assert moving.worker_left(C) == [Release(A, f"{C}#1")]
    orders = moving.moved("p", "u0", 1, ["tcp://old#7", f"{A}#1", f"{C}#1"])
    assert orders == [Release(B, f"{C}#1"), Release(B, "tcp://old#7"), Drop(A, "p", "u0", 0)]


def test_a_host_that_comes_back_is_another(moving: Directory) -> None:
    """A new incarnation of the old host has nothing."""
    moving.worker_joined(A, f"{A}#2", 2)
    assert moving.pools["p"].places == [Place("u0", "", 0, False)]
    assert moving.moved("p", "u0", 1) == [Release(B, f"{A}#1")]


def test_a_pool_ends_while_it_moves(moving: Directory) -> None:
    """Both hosts drop it, whatever they have."""
    assert moving.close("p") == [Drop(A, "p", "u0", 0), Drop(B, "p", "u0", 1)]
    assert moving.moved("p", "u0", 1) == []
    assert moving.move_failed("p", "u0", 1) == []


def test_an_old_host_failure_during_a_move(moving: Directory) -> None:
    """It is believed: the life is over, at the new host as well."""
    orders = moving.host_failed("p", "u0", 0)
    assert orders == [Drop(B, "p", "u0", 1), Host(B, "p", 0, "u1", 2, {"n_queues": 1}, ("c1",))]
    assert moving.moved("p", "u0", 1) == []


# -- whatever happens


@pytest.mark.parametrize("seed", range(30))
def test_one_queue_and_one_epoch_on_a_random_walk(directory: Directory, seed: int) -> None:
    """Hosts that serve what they are told, move and die: no epoch twice; when all is answered, one place serves.

    Whatever else a host was given of a queue it was told to drop.
    """
    chance = random.Random(seed)
    join(directory, A, B)
    orders = open_pool(directory, 2)
    given: set[tuple[int, int]] = set()
    has: dict[tuple[str, str], int] = {}
    open_orders: list[Any] = []
    for incarnation in range(200):
        for order in orders:
            if isinstance(order, (Host, TakeOver)):
                assert (order.index, order.epoch) not in given
                given.add((order.index, order.epoch))
                assert order.address in directory.workers
                has[order.address, order.uuid] = order.epoch
                open_orders.append(order)
            elif isinstance(order, Drop) and has.get((order.address, order.uuid), 1 << 30) <= order.epoch:
                del has[order.address, order.uuid]
        if open_orders and (incarnation >= 150 or chance.random() < 0.4):
            order = open_orders.pop(chance.randrange(len(open_orders)))
            if isinstance(order, Host):
                directory.hosted("p", order.uuid, order.epoch)
                orders = []
            else:
                answer = directory.moved if chance.random() < 0.6 else directory.move_failed
                orders = answer("p", order.uuid, order.epoch)
        elif incarnation >= 150:
            orders = []
        elif chance.random() < 0.5:
            orders = directory.move("p", chance.randrange(2), chance.choice([A, B, C]))
        else:
            address = chance.choice([A, B, C])
            has = {key: epoch for key, epoch in has.items() if key[0] != address}
            if chance.random() < 0.5:
                orders = directory.worker_left(address)
            else:
                orders = directory.worker_joined(address, f"#{incarnation}", 2)
    if not directory.workers:
        return
    places = directory.pools["p"].places
    assert not directory.pools["p"].moves
    assert all(place.up for place in places)
    assert {place.address for place in places} <= set(directory.workers)
    assert has == {(place.address, place.uuid): place.epoch for place in places}


@pytest.mark.parametrize("seed", range(20))
def test_invariants_on_a_random_walk(directory: Directory, seed: int) -> None:
    """Orders, obeyed by an obedient cluster, lead to what the directory says; queues and consumers are where they can.

    A queue has an address only of a worker that is here, and one if there is any; a consumer pool with a number runs
    that many, evenly, one without runs on every worker; a uuid is never used twice, and an epoch never goes back.
    """
    chance = random.Random(seed)
    open_pool(directory, 3, "p")
    open_pool(directory, 1, "q", "c2")
    consume(directory, 4, "four", "p")
    consume(directory, None, "each", "q")
    running: dict[tuple[str, str], int] = {}
    uuids = {place.uuid for pool in "pq" for place in directory.pools[pool].places}
    epochs = {(pool, index): 0 for pool in "pq" for index in range(3)}
    for incarnation in range(60):
        address = chance.choice([A, B, C])
        if chance.random() < 0.5:
            orders = directory.worker_joined(address, f"{address}#{incarnation}", 2)
            if address in directory.workers:  # another incarnation runs nothing yet
                running = {key: n for key, n in running.items() if key[0] != address}
        elif chance.random() < 0.8:
            orders = directory.worker_left(address)
            running = {key: n for key, n in running.items() if key[0] != address}
        else:
            orders = directory.host_failed("p", *directory.pools["p"].places[0][::2])
        for order in orders:
            if isinstance(order, Consume):
                running[order.address, order.consumers] = order.count
            if isinstance(order, Host):
                uuids.add(order.uuid)
                assert order.epoch >= epochs[order.pool, order.index]
                epochs[order.pool, order.index] = order.epoch
        here = set(directory.workers)
        for pool in "pq":
            for place in directory.pools[pool].places:
                assert place.address in here or (not place.address and not here)
        assert {key[0] for key in running} <= here
        four = [running.get((address, "four"), 0) for address in here]
        assert sum(four) == (4 if here else 0)
        assert max(four, default=0) - min(four, default=0) <= 1
        assert {key[0]: n for key, n in running.items() if key[1] == "each"} == dict.fromkeys(here, 1)
    assert len(uuids) > 4
