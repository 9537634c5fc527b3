"""The simulation itself: time, tasks, nodes that die or are busy, and what the network does to messages."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from daskqueue_core.directory import Place, newest
from daskqueue_core.testing import (
    Cancelled,
    Chance,
    ManualClock,
    Promise,
    SimCluster,
    SimNetwork,
    SimNode,
    Simulation,
    SimulationStuck,
)
from daskqueue_core.testing.simulation import Alive


class Echo(SimNode):
    """Answers what it is asked, after `wait` seconds."""

    heard: list[tuple[float, Any]]
    alive_after: list[bool]

    async def serve(self, op: str, content: dict[str, Any], alive: Alive) -> Any:
        """Say it again."""
        self.heard.append((self.simulation.clock.seconds, content["n"]))
        await self.sleep(content.get("wait", 0.0))
        self.alive_after.append(alive())
        return op, content["n"]


class World:
    """A caller and an echo."""

    def __init__(self) -> None:
        self.simulation = Simulation()
        self.network = SimNetwork(self.simulation)
        self.caller = SimNode(self.simulation, "caller")
        self.echo = Echo(self.simulation, "echo")
        self.echo.heard, self.echo.alive_after = [], []
        self.network.add(self.caller)
        self.network.add(self.echo)

    def call(self, n: int, **content: float) -> Any:
        """Start a call."""
        return self.caller.spawn(self.network.call, self.caller, "echo", "say", {"n": n, **content})

    @property
    def heard(self) -> list[Any]:
        """What arrived, in order."""
        return [n for _, n in self.echo.heard]


@pytest.fixture
def world() -> World:
    """A quiet one."""
    return World()


# -- clock, tasks


def test_the_clock_is_moved_by_hand() -> None:
    """In nanoseconds, and never back."""
    clock = ManualClock(5)
    clock.advance(1.5)
    assert (clock(), clock.seconds) == (1_500_000_005, 1.500000005)
    with pytest.raises(ValueError, match="cannot be set back"):
        clock.set(7)


def test_time_passes_in_jumps(world: World) -> None:
    """Events happen in the order of their time, then of their making."""
    order: list[str] = []
    for name, seconds in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        world.simulation.later(seconds, None, lambda name=name: order.append(name))
    world.simulation.later(1.5, None, lambda: order.append("never")).cancel()
    world.simulation.run(seconds=3.0)
    assert (order, world.simulation.clock.seconds) == (["a", "b", "c"], 3.0)


def test_waiting_for_what_does_not_come(world: World) -> None:
    """A run has an end, and a wait has one."""
    promise: Promise[int] = Promise()
    assert world.simulation.result(world.caller.spawn(world.caller.wait, promise, 5.0)) is None
    with pytest.raises(SimulationStuck, match="10 simulated seconds"):
        world.simulation.run(lambda: False, seconds=10)


def test_the_first_word_counts() -> None:
    """A promise is kept once."""
    promise: Promise[int] = Promise()
    promise.resolve(1)
    promise.resolve(2)
    promise.fail(ValueError())
    assert promise.result() == 1


def test_a_cancelled_task(world: World) -> None:
    """It can put things in order; who awaits it hears of it."""
    order: list[str] = []

    async def sleeper() -> None:
        try:
            await world.caller.sleep(10.0)
        finally:
            order.append("cancelled")

    task = world.caller.spawn(sleeper)
    unborn = world.caller.spawn(sleeper)
    unborn.cancel()
    world.simulation.later(1.0, None, task.cancel)
    with pytest.raises(Cancelled):
        world.simulation.result(task)
    with pytest.raises(Cancelled):
        world.simulation.result(unborn)
    assert (order, world.simulation.clock.seconds) == (["cancelled"], 1.0)


def test_cancelled_in_the_moment_it_goes_on(world: World) -> None:
    """What it waited for has come and is lost to it; what it waits for next is not cut short."""
    promise: Promise[int] = Promise()

    async def stubborn() -> float:
        try:
            await promise
        except Cancelled:
            await world.caller.sleep(5.0)
        return world.simulation.clock.seconds

    task = world.caller.spawn(stubborn)
    world.simulation.run(seconds=1.0)
    promise.resolve(1)
    task.cancel()
    assert world.simulation.result(task) == 6.0


def test_an_error_that_nobody_awaits(world: World) -> None:
    """It ends the run; one that is awaited goes there."""

    async def fails() -> None:
        await world.caller.sleep(1.0)
        raise KeyError("lost")

    async def awaits() -> str:
        try:
            await world.caller.spawn(fails)
        except KeyError:
            return "caught"
        return "not raised"

    assert world.simulation.result(world.caller.spawn(awaits)) == "caught"
    world.caller.spawn(fails)
    with pytest.raises(KeyError, match="lost"):
        world.simulation.run(seconds=2.0)


# -- messages


def test_a_call(world: World) -> None:
    """There and back, a latency each."""
    assert world.simulation.result(world.call(1)) == ("say", 1)
    assert world.simulation.clock.seconds == pytest.approx(0.001)


@pytest.mark.parametrize("kind", ["request", "answer"])
def test_a_lost_message_breaks_the_connection(world: World, kind: str) -> None:
    """The caller notices; whether it was heard, it cannot know."""
    rule = world.network.rule("say", kind, drop=True)
    with pytest.raises(ConnectionError, match="say was lost"):
        world.simulation.result(world.call(1))
    assert world.heard == ([] if kind == "request" else [1])
    assert [message.kind for message in rule.hits] == [kind]
    assert world.simulation.result(world.call(2)) == ("say", 2)


def test_a_message_is_overtaken_and_comes_twice(world: World) -> None:
    """The caller hears one answer."""
    world.network.rule("say", delay=1.0, copies=2, copy_delay=3.0)
    first, second = world.call(1), world.call(2)
    assert world.simulation.result(first) == ("say", 1)
    assert world.simulation.result(second) == ("say", 2)
    world.simulation.run(seconds=10.0)
    assert world.heard == [2, 1, 1]
    assert world.echo.heard[2][0] == pytest.approx(4.0, abs=0.01)


def test_a_rule_chooses(world: World) -> None:
    """By content, from the nth on, so many times; the first rule that hits decides, and watching is free."""
    watch = world.network.watch("say")
    even = world.network.rule("say", drop=True, where=lambda content: content["n"] % 2 == 0, nth=2, times=2)
    world.network.rule("say", drop=True, where=lambda content: content["n"] == 4)
    failed = []
    for n in range(9):
        try:
            world.simulation.result(world.call(n))
        except ConnectionError:
            failed.append(n)
    assert failed == [2, 4]
    assert [message.content["n"] for message in even.hits] == failed
    assert len(watch.hits) == 9


def test_chance_is_handed_in() -> None:
    """The same seed, the same world; another, another."""

    def course(seed: int) -> list[tuple[float, Any]]:
        world = World()
        world.network.chance = Chance(Random(seed), drop=0.2, twice=0.2, slow=0.5, slowest_s=2.0)
        for n in range(20):
            world.call(n).ended.awaited_by(world.caller.spawn(world.caller.sleep, 100.0))
        world.simulation.run(seconds=50.0)
        return world.echo.heard

    assert course(1) == course(1)
    assert course(1) != course(2)
    assert len({n for _, n in course(1)}) < 20
    assert len(course(1)) != len({n for _, n in course(1)})


# -- disasters


def test_a_node_dies(world: World) -> None:
    """Who called it hears at once, its own work stops where it is, and nobody reaches it any more."""
    task = world.call(1, wait=10.0)
    world.simulation.later(1.0, None, lambda: world.network.kill(world.echo))
    with pytest.raises(ConnectionError, match="echo is gone"):
        world.simulation.result(task)
    assert world.simulation.clock.seconds < 1.1
    assert world.echo.alive_after == []
    with pytest.raises(ConnectionError, match="refuses"):
        world.simulation.result(world.call(2))


def test_a_machine_dies(world: World) -> None:
    """Its peers notice late."""
    task = world.call(1, wait=100.0)
    world.simulation.later(1.0, None, lambda: world.network.kill(world.echo, silent=True))
    with pytest.raises(ConnectionError):
        world.simulation.result(task)
    assert world.simulation.clock.seconds == pytest.approx(31.0)


@pytest.mark.parametrize(("silent", "alive"), [(False, False), (True, True)])
def test_a_caller_dies(world: World, silent: bool, alive: bool) -> None:
    """Whoever serves it can see that, unless its machine died."""
    world.call(1, wait=10.0)
    world.simulation.later(1.0, None, lambda: world.network.kill(world.caller, silent=silent))
    world.simulation.run(seconds=20.0)
    assert world.echo.alive_after == [alive]


def test_a_call_that_nobody_awaits_any_more(world: World) -> None:
    """Who serves it can see that."""
    task = world.call(1, wait=10.0)
    world.simulation.later(1.0, None, task.cancel)
    with pytest.raises(Cancelled):
        world.simulation.result(task)
    world.simulation.run(seconds=20.0)
    assert world.echo.alive_after == [False]


def test_a_node_is_busy(world: World) -> None:
    """What was due meanwhile happens afterwards, in order."""
    world.echo.hold(90.0)
    for n in range(3):
        world.network.rule("say", delay=3.0 - n)
    tasks = [world.call(n) for n in range(3)]
    assert [world.simulation.result(task) for task in tasks] == [("say", n) for n in range(3)]
    assert world.heard == [2, 1, 0]
    assert min(at for at, _ in world.echo.heard) == 90.0


def test_connections_break(world: World) -> None:
    """Those that a node made; it can make new ones."""
    task = world.call(1, wait=10.0)
    world.simulation.later(1.0, None, lambda: world.network.disconnect(world.caller))
    with pytest.raises(ConnectionError, match="connections of caller broke"):
        world.simulation.result(task)
    assert world.simulation.result(world.call(2)) == ("say", 2)


# -- the cluster


def test_the_cluster_of_the_docstring() -> None:
    """Two queues, a host, a worker, a client, and a thousand tasks of which one report is lost."""
    cluster = SimCluster(n_queues=2)
    cluster.worker(slots=0)
    cluster.worker(slots=2)
    client = cluster.client()
    cluster.start()
    futures = client.submit(1000, value=42)
    lost = cluster.network.rule("settle", "answer", drop=True)
    assert cluster.finish(futures) == [42] * 1000
    assert cluster.result(client, client.join) == 2
    assert len(lost.hits) == 1
    assert not cluster.reruns


def test_the_same_course_at_every_run() -> None:
    """Nothing depends on what is not in the program: not on hashes, addresses or the real clock."""

    def course() -> tuple[int, float]:
        cluster = SimCluster(n_queues=3)
        for slots in (1, 2, 3):
            cluster.worker(slots)
        client = cluster.client()
        cluster.start()
        cluster.network.chance = Chance(Random(5), drop=0.1, twice=0.1, slow=0.1)
        for _ in range(10):
            client.submit(20, 0.01)
        cluster.scheduler.later(0.5, lambda: cluster.kill(cluster.workers[0]))
        cluster.end(client.futures)
        return cluster.network.sent, cluster.simulation.clock.seconds

    assert course() == course()


def test_an_overtaken_answer_of_the_directory() -> None:
    """It brings no old life of a queue back, but the news about others."""
    old = [Place("a1", "w1", 0, True), Place("b1", "w1", 0, True)]
    new = [Place("a2", "w2", 1, True), Place("b1", "w1", 0, False)]
    assert newest(new, old) == [new[0], old[1]]
    assert newest(old, new) == new
    assert newest([], new) == new
