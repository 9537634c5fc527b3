"""Directory: a worker that leaves gives away what it hosts and consumes, and is here until it is gone.

One whose end is near, so that a pool's consumers leave it, gives that pool's queues to others.
"""

import itertools
import random
from typing import Any

import pytest

from daskqueue_core.directory import Consume, Directory, Drop, Host, Place, Release, TakeOver

A, B, C = "tcp://a", "tcp://b", "tcp://c"


def owner(address: str) -> str:
    """Of its first incarnation."""
    return f"{address}#1"


@pytest.fixture
def directory() -> Directory:
    """Uuids are u0, u1, ...; A and B are here, A hosts u0 of pool "p" and B u1 of pool "q"."""
    numbers = itertools.count()
    directory = Directory(lambda: f"u{next(numbers)}")
    for address in (A, B):
        directory.worker_joined(address, owner(address), 1)
    for pool in "pq":
        directory.open(pool, {}, 1, client="c1", owned=True)
        directory.hosted(pool, directory.pools[pool].places[0].uuid, 0)
    assert [directory.pools[pool].places[0].address for pool in "pq"] == [A, B]
    return directory


def place(directory: Directory, pool: str = "p") -> Place:
    """Of its first queue."""
    return directory.pools[pool].places[0]


def test_its_queue_is_taken_over(directory: Directory) -> None:
    """By one that stays; it is here until it is gone, and what it leased until then is released."""
    assert directory.worker_leaves(A) == [TakeOver(B, "p", 0, "u0", 1, A, {})]
    assert directory.is_giving(A)
    assert directory.workers == [A, B]
    assert directory.staying == [B]
    assert directory.worker_leaves(A) == []
    assert directory.moved("p", "u0", 1, [owner(A)]) == [Drop(A, "p", "u0", 0)]
    assert not directory.is_giving(A)
    assert place(directory) == Place("u0", B, 1, True)
    assert directory.worker_left(A) == [Release(B, owner(A))]


def test_nobody_to_take_it(directory: Directory) -> None:
    """It stays, and ends with its worker: another life, where a worker comes."""
    directory.worker_leaves(B)
    directory.moved("q", "u1", 1)
    assert place(directory, "q").address == A
    assert directory.worker_leaves(A) == []
    assert not directory.is_giving(A)
    directory.worker_left(B)
    assert directory.worker_left(A) == []
    assert [place(directory, pool) for pool in "pq"] == [Place("u2", "", 1, False), Place("u3", "", 2, False)]
    assert [order.uuid for order in directory.worker_joined(C, owner(C), 1)] == ["u2", "u3"]


def test_somebody_comes_in_time(directory: Directory) -> None:
    """What nobody could take goes to a worker that joins."""
    directory.worker_left(B)
    assert directory.worker_leaves(A) == []
    orders = directory.worker_joined(C, owner(C), 1)
    assert TakeOver(C, "p", 0, "u0", 1, A, {}) in orders


def test_somebody_comes_while_it_is_called_home(directory: Directory) -> None:
    """Who joins meanwhile has it next; who could not take it is not asked again."""
    directory.worker_leaves(A)
    home = TakeOver(A, "p", 0, "u0", 2, A, {})
    assert directory.move_failed("p", "u0", 1) == [Drop(B, "p", "u0", 1), home]
    assert not [order for order in directory.worker_joined(C, owner(C), 1) if isinstance(order, TakeOver)]
    assert directory.moved("p", "u0", 2) == [TakeOver(C, "p", 0, "u0", 3, A, {})]
    home = TakeOver(A, "p", 0, "u0", 4, A, {})
    assert directory.move_failed("p", "u0", 3) == [Drop(C, "p", "u0", 3), home]
    assert directory.moved("p", "u0", 4) == []
    assert place(directory) == Place("u0", A, 4, True)


def test_nothing_is_placed_on_it(directory: Directory) -> None:
    """Neither queues nor consumers."""
    directory.worker_leaves(A)
    assert [order.address for order in directory.open("r", {}, 3, client="c1", owned=True)] == [B] * 3
    orders = directory.start_consumers("p", "k", {}, count=4, kinds=(0,), early_ack=False)
    assert [(order.address, order.count) for order in orders if isinstance(order, Consume)] == [(B, 4)]
    assert directory.move("q", 0, A) == []


def test_its_consumers_go_elsewhere(directory: Directory) -> None:
    """A number of them is kept; it is not told to stop, which it does by itself."""
    directory.start_consumers("p", "k", {}, count=4, kinds=(0,), early_ack=False)
    directory.start_consumers("q", "each", {}, count=None, kinds=(0,), early_ack=False)
    orders = directory.worker_leaves(A)
    assert [(order.address, order.count) for order in orders if isinstance(order, Consume)] == [(B, 4)]
    assert [each.running for each in directory.served("p")] == [4]
    assert [each.running for each in directory.served("q")] == [1]


def test_a_durable_queue_is_closed_and_opened_elsewhere(directory: Directory) -> None:
    """Under its uuid; who leaves still holds its leases."""
    directory.open("d", {}, 1, client="c1", owned=False, uuids=["file"])
    directory.hosted("d", "file", 0)
    assert place(directory, "d").address == A
    orders = [order for order in directory.worker_leaves(A) if order.pool == "d"]
    owners = (owner(A), owner(B))
    assert orders == [Drop(A, "d", "file", 0), Host(B, "d", 0, "file", 1, {}, (), owners)]
    assert not directory.pools["d"].refused


def test_a_durable_queue_of_the_last(directory: Directory) -> None:
    """It is served until its worker is gone, and waits for the next."""
    directory.open("d", {}, 1, client="c1", owned=False, uuids=["file"])
    directory.hosted("d", "file", 0)
    directory.worker_left(B)
    assert directory.worker_leaves(A) == []
    directory.worker_left(A)
    assert place(directory, "d") == Place("file", "", 1, False)
    hosts = [order for order in directory.worker_joined(C, owner(C), 1) if isinstance(order, Host)]
    assert [(order.uuid, order.epoch) for order in hosts if order.pool == "d"] == [("file", 1)]


def test_a_durable_queue_when_all_leave(directory: Directory) -> None:
    """Those that leave serve it one after the other: they may still have to report there."""
    directory.open("d", {}, 1, client="c1", owned=False, uuids=["file"])
    directory.hosted("d", "file", 0)
    directory.worker_leaves(A)
    assert directory.worker_leaves(B) == []
    owners = (owner(A), owner(B))
    assert directory.host_failed("d", "file", 1) == [Host(A, "d", 0, "file", 2, {}, (), owners, leaving=True)]
    directory.hosted("d", "file", 2)
    hosts = [order for order in directory.worker_left(A) if isinstance(order, Host)]
    assert hosts == [Host(B, "d", 0, "file", 3, {}, (), (owner(B),), leaving=True)]
    directory.hosted("d", "file", 3)
    orders = [order for order in directory.worker_joined(C, owner(C), 1) if getattr(order, "pool", "") == "d"]
    assert orders == [Drop(B, "d", "file", 3), Host(C, "d", 0, "file", 4, {}, (), (owner(B), owner(C)))]


def test_what_is_not_served_yet(directory: Directory) -> None:
    """It holds nothing: another host, another life."""
    directory.open("r", {}, 1, client="c1", owned=True)
    assert place(directory, "r") == Place("u2", A, 0, False)
    orders = [order for order in directory.worker_leaves(A) if order.pool == "r"]
    assert orders == [Drop(A, "r", "u2", 0), Host(B, "r", 0, "u3", 1, {}, ("c1",))]


def test_one_that_cannot_take_it(directory: Directory) -> None:
    """The next is asked; when nobody is left, it is served where it was, and no more asked for."""
    directory.worker_joined(C, owner(C), 1)
    assert directory.worker_leaves(A) == [TakeOver(C, "p", 0, "u0", 1, A, {})]
    assert directory.move_failed("p", "u0", 1) == [Drop(C, "p", "u0", 1), TakeOver(B, "p", 0, "u0", 2, A, {})]
    assert directory.move_failed("p", "u0", 2) == [Drop(B, "p", "u0", 2), TakeOver(A, "p", 0, "u0", 3, A, {})]
    assert directory.moved("p", "u0", 3) == []
    assert place(directory) == Place("u0", A, 3, True)


def test_its_heir_leaves_too(directory: Directory) -> None:
    """While it takes the queue over: it is passed on."""
    directory.worker_joined(C, owner(C), 1)
    directory.worker_leaves(A)
    directory.worker_leaves(C)
    orders = directory.moved("p", "u0", 1)
    assert orders == [Drop(A, "p", "u0", 0), TakeOver(B, "p", 0, "u0", 2, C, {})]


def test_its_heir_is_lost(directory: Directory) -> None:
    """Another takes it over from where it was."""
    directory.worker_joined(C, owner(C), 1)
    directory.worker_leaves(A)
    orders = directory.worker_left(C)
    assert TakeOver(B, "p", 0, "u0", 2, A, {}) in orders
    assert directory.moved("p", "u0", 2) == [Release(B, owner(C)), Drop(A, "p", "u0", 0)]


def test_it_is_lost_itself(directory: Directory) -> None:
    """As any other: who takes its queue over knows whether that was in time."""
    directory.worker_leaves(A)
    assert directory.worker_left(A) == [Release(B, owner(A))]
    assert directory.moved("p", "u0", 1) == [Release(B, owner(A))]
    assert place(directory) == Place("u0", B, 1, True)


def test_it_comes_again(directory: Directory) -> None:
    """Another incarnation at its address is a new worker, which stays."""
    directory.worker_leaves(A)
    directory.worker_joined(A, f"{A}#2", 1)
    assert directory.staying == [B, A]


def test_one_that_is_not_here(directory: Directory) -> None:
    """Nothing is ordered."""
    assert directory.worker_leaves(C) == []
    assert not directory.is_giving(C)


def consume(directory: Directory, pool: str) -> None:
    """One consumer on each worker."""
    directory.start_consumers(pool, f"{pool}'s", {}, count=None, kinds=(0,), early_ack=False)


def test_its_end_is_near(directory: Directory) -> None:
    """Those who leave take their pool's queues along; another pool's stay, and so does the worker."""
    directory.open("r", {}, 1, client="c1", owned=True)
    directory.hosted("r", "u2", 0)
    consume(directory, "p")
    assert directory.consumers_left("p", "p's", A) == [TakeOver(B, "p", 0, "u0", 1, A, {})]
    assert directory.consumers_left("p", "p's", A) == []
    assert directory.moved("p", "u0", 1, [owner(A)]) == [Drop(A, "p", "u0", 0)]
    assert place(directory, "r") == Place("u2", A, 0, True)
    assert directory.staying == [A, B]


def test_the_end_of_all_is_near(directory: Directory) -> None:
    """It stays, until somebody comes who lasts."""
    consume(directory, "p")
    assert directory.consumers_left("p", "p's", B) == []
    assert directory.consumers_left("p", "p's", A) == []
    orders = directory.worker_joined(C, owner(C), 1)
    assert [order for order in orders if isinstance(order, TakeOver)] == [TakeOver(C, "p", 0, "u0", 1, A, {})]
    directory.moved("p", "u0", 1)
    assert directory.consumers_left("p", "p's", C) == []
    assert place(directory) == Place("u0", C, 1, True)


def test_a_new_host_lasts(directory: Directory) -> None:
    """Whose end is near is the last choice also after a loss, or for what somebody else gives away."""
    directory.worker_joined(C, owner(C), 1)
    consume(directory, "p")
    directory.consumers_left("p", "p's", B)
    assert TakeOver(C, "p", 0, "u0", 1, A, {}) in directory.worker_leaves(A)
    directory.moved("p", "u0", 1)
    hosts = [order.address for order in directory.worker_left(C) if isinstance(order, Host)]
    assert hosts == [B], "there is nobody else"


def test_it_is_better_than_nobody(directory: Directory) -> None:
    """A durable queue that no other worker can open is opened there again."""
    directory.open("d", {}, 1, client="c1", owned=False, uuids=["file"])
    directory.hosted("d", "file", 0)
    consume(directory, "d")
    owners = (owner(A), owner(B))
    orders = [order for order in directory.consumers_left("d", "d's", A) if not isinstance(order, Consume)]
    assert orders == [Drop(A, "d", "file", 0), Host(B, "d", 0, "file", 1, {}, (), owners)]
    assert directory.host_failed("d", "file", 1) == [Host(A, "d", 0, "file", 2, {}, (), owners)]
    assert directory.hosted("d", "file", 2) == []
    assert place(directory, "d") == Place("file", A, 2, True)


@pytest.mark.parametrize("seed", range(30))
def test_a_random_walk(directory: Directory, seed: int) -> None:
    """Workers come, leave and die, moves succeed and fail: no epoch twice, and in the end one place serves each queue.

    It is on a worker that stays, if one does, and of these one that lasts; whoever else had it was told to drop it.
    """
    chance = random.Random(seed)
    directory.open("d", {}, 1, client="c1", owned=False, uuids=["file"])
    directory.hosted("d", "file", 0)
    directory.start_consumers("p", "p's", {}, count=5, kinds=(0,), early_ack=False)
    directory.start_consumers("d", "d's", {}, count=5, kinds=(0,), early_ack=False)
    has = {(each.address, each.uuid): each.epoch for pool in directory.pools.values() for each in pool.places}
    given = {(pool, 0) for pool in directory.pools}
    waiting: list[Any] = []
    orders: list[Any] = []
    for step in range(300):
        for order in orders:
            if isinstance(order, (Host, TakeOver)):
                assert (order.pool, order.epoch) not in given
                given.add((order.pool, order.epoch))
                if isinstance(order, Host):
                    assert order.address in (directory.workers if order.leaving else directory.staying)
                    assert order.pool == "d" or not order.leaving
                has[order.address, order.uuid] = order.epoch
                waiting.append(order)
            elif isinstance(order, Drop) and has.get((order.address, order.uuid), 1 << 30) <= order.epoch:
                del has[order.address, order.uuid]
        orders = []
        address = chance.choice([A, B, C])
        if waiting and (step >= 200 or chance.random() < 0.4):
            order = waiting.pop(chance.randrange(len(waiting)))
            if isinstance(order, Host):
                directory.hosted(order.pool, order.uuid, order.epoch)
            else:
                answer = directory.moved if chance.random() < 0.6 else directory.move_failed
                orders = answer(order.pool, order.uuid, order.epoch)
        elif step >= 200:
            continue
        elif chance.random() < 0.4:
            orders = directory.worker_leaves(address)
        elif chance.random() < 0.3:
            pool = chance.choice("pd")
            orders = directory.consumers_left(pool, f"{pool}'s", address)
        else:
            has = {key: epoch for key, epoch in has.items() if key[0] != address}
            if chance.random() < 0.3:
                orders = directory.worker_left(address)
            else:
                orders = directory.worker_joined(address, f"#{step}", 2)
    assert not waiting
    places = [pool.places[0] for pool in directory.pools.values()]
    assert not any(pool.moves for pool in directory.pools.values())
    assert has == {(each.address, each.uuid): each.epoch for each in places if each.address}
    assert all(each.up == bool(each.address) for each in places)
    if directory.staying:
        assert all(each.up for each in places)
        for pool in "pd":
            (consumers,) = directory.served(pool)
            lasting = [address for address in directory.staying if address not in consumers.left]
            assert consumers.running == (5 if lasting else 0)
        assert place(directory, "d").address in (lasting or directory.staying)
