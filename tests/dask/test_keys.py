"""Keys: one key, one task; and every task found, cancelled and forgotten by its key, from any client."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

from daskqueue import (
    ConsumerBaseClass,
    ConsumerPool,
    DuplicateKey,
    QueueLost,
    QueuePool,
    ResultExpired,
    RetryPolicy,
)
from daskqueue.client.memory import Memory
from daskqueue.client.naming import check_keys, item_key, parse_key, queue_of, task_key
from daskqueue.client.submitter import Submitter
from daskqueue.client.task_options import Terms
from daskqueue.wire.functions import EncodedFunction
from daskqueue.wire.link import PoolGone, Route
from daskqueue_core.outcomes import End, Outcome
from daskqueue_core.producer import ProducerStream

LIMIT = 60


@pytest.fixture
def idle(client: Client) -> Iterator[QueuePool]:
    """A pool of two queues that nobody serves yet."""
    pool = QueuePool(client, n_queues=2)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def pool(client: Client, idle: QueuePool) -> QueuePool:
    """With one consumer on each worker."""
    ConsumerPool(client, idle).start()
    return idle


@pytest.fixture
def other(new_client: Callable[..., Client], cluster: Any) -> Callable[[QueuePool], QueuePool]:
    """`other(pool)`: the same pool, seen from another client."""

    def attach(pool: QueuePool) -> QueuePool:
        return QueuePool.attach(new_client(cluster), pool.name)

    return attach


def passing(path: str, value: Any = None) -> Any:
    """Wait for a file."""
    import time

    while not Path(path).exists():
        time.sleep(0.005)
    return value


# ---------------------------------------------------------------------------------------------------------------- names


def test_names() -> None:
    """Automatic, item and explicit keys are told apart."""
    assert parse_key(task_key(7, 12)) == ((7, 12), "", True)
    assert parse_key(item_key("ab" * 16, 3)) == ((0, 3), "ab" * 16, False)
    for key in ("mine", "7-12", f"{7:016x}-012", f"{7:016X}-12".replace("7", "A"), f"x{7:016x}-1", "item-1-2", "k\n"):
        assert parse_key(key) == (key, "", False)


def test_queue_of() -> None:
    """The same for everybody, and spread."""
    assert queue_of("anything", 1) == 0
    assert [queue_of(key, 4) for key in ("a", "b", "ключ")] == [queue_of(key, 4) for key in ("a", "b", "ключ")]
    assert {queue_of(f"k{n}", 4) for n in range(100)} == {0, 1, 2, 3}
    assert queue_of("order-17", 1000) == 336, "clients of other versions look in the same queue"


@pytest.mark.parametrize(("keys", "text"), [("one", r"\[key\]"), (b"one", "list"), (3, "list"), ([1], "string")])
def test_bad_keys(pool: QueuePool, keys: Any, text: str) -> None:
    """A single string is no list of keys."""
    for call in (pool.cancel, pool.forget, pool.requeue, pool.results, pool.failures):
        with pytest.raises(TypeError, match=text):
            call(keys)
    with pytest.raises(TypeError, match=r"give future\.key"):
        check_keys([pool.submit(abs, 1)])
    with pytest.raises(TypeError, match="string"):
        pool.get_future(3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ one task


def test_the_same_key_twice(pool: QueuePool, oracle: Any) -> None:
    """It runs once, and both futures hear of it, in one put or later."""
    once = pool.options(key="once")
    futures = [once.submit(oracle.mark, "run") for _ in range(5)]
    assert [future.result(LIMIT) for future in futures] == [None] * 5
    assert once.submit(oracle.mark, "run").result(LIMIT) is None
    assert {future.key for future in futures} == {"once"}
    assert oracle.lines() == ["run"]
    assert pool.results() == {"once": None}


def test_raise(pool: QueuePool) -> None:
    """The second one ends with DuplicateKey, which is a ValueError and names it."""
    view = pool.options(key="k", on_duplicate="raise")
    assert view.submit(abs, -1).result(LIMIT) == 1
    error = view.submit(abs, -2).exception(LIMIT)
    assert isinstance(error, DuplicateKey)
    assert isinstance(error, ValueError)
    assert "task k was not put" in str(error)
    assert pool.get_future("k").result(LIMIT) == 1


def test_replace(client: Client, idle: QueuePool, oracle: Any) -> None:
    """The one that waits is cancelled, the kept result forgotten."""
    view = idle.options(key="k", on_duplicate="replace")
    first = view.submit(oracle.mark, "first")
    idle.flush()
    second = view.submit(operator.add, 1, 1)
    idle.flush()
    with pytest.raises(cf.CancelledError):
        first.result(LIMIT)
    with ConsumerPool(client, idle):
        assert second.result(LIMIT) == 2
        assert view.submit(operator.add, 2, 2).result(LIMIT) == 4
        assert idle.results() == idle.results(["k"]) == {"k": 4}
        assert second.result(0) == 2, "an outcome that was heard stays"
    assert oracle.lines() == []


def test_after_a_failure_it_runs_again(pool: QueuePool) -> None:
    """FAILED and CANCELLED keys are free; readers see the last."""
    view = pool.options(key="again")
    assert isinstance(view.submit(operator.truediv, 1, 0).exception(LIMIT), ZeroDivisionError)
    assert list(pool.failures()) == ["again"]
    assert view.submit(operator.truediv, 1, 2).result(LIMIT) == 0.5
    assert pool.results() == {"again": 0.5}
    assert pool.failures() == {}
    assert pool.dead_letters() == []


def test_many_keys(pool: QueuePool) -> None:
    """Over both queues, each once, all found."""
    futures = [pool.options(key=f"k{n % 500}").submit(operator.neg, n % 500) for n in range(1000)]
    assert [future.result(LIMIT) for future in futures] == [-(n % 500) for n in range(1000)]
    pool.join(timeout=LIMIT)
    assert pool.results() == {f"k{n}": -n for n in range(500)}
    puts = [stats.puts for stats in pool.stats()]
    assert sum(puts) == 500
    assert min(puts) > 100


class Taking(ConsumerBaseClass):
    """Writes items down."""

    oracle: Any = None

    def process_item(self, item: Any) -> None:
        """A line each."""
        self.oracle.mark(item)


def test_items_with_keys(client: Client, idle: QueuePool, oracle: Any) -> None:
    """An item whose key is in use is not put; with "raise" the put says so. Afterwards the key is free."""
    view = idle.options(key="item")
    view.put("first")
    view.put("second", block=False)
    with pytest.raises(DuplicateKey, match="'item'"):
        view.options(on_duplicate="raise").put("third")
    with pytest.raises(DuplicateKey):
        view.options(on_duplicate="raise").put("fourth", timeout=1)
    idle.options(key="other", on_duplicate="replace").put("fifth")
    idle.options(key="other", on_duplicate="replace").put("sixth")
    with ConsumerPool(client, idle, type("Here", (Taking,), {"oracle": oracle})):
        idle.join(timeout=LIMIT)
        view.options(on_duplicate="raise").put("seventh")
        idle.join(timeout=LIMIT)
    assert sorted(oracle.lines()) == ["first", "seventh", "sixth"]


# ----------------------------------------------------------------------------------------------------------- get_future


def test_from_any_client(pool: QueuePool, other: Any) -> None:
    """Explicit and automatic keys, before and after the end, values and errors."""
    there = other(pool)
    futures = [pool.submit(operator.truediv, 1, n) for n in (4, 0)]
    futures.append(pool.options(key="named").submit(operator.truediv, 1, 8))
    pool.join(timeout=LIMIT)
    for reader in (there, pool):
        found = [reader.get_future(future.key) for future in futures]
        assert [future.key for future in found] == [future.key for future in futures]
        assert found[0].result(LIMIT) == 0.25
        assert isinstance(found[1].exception(LIMIT), ZeroDivisionError)
        assert "truediv" in repr(found[1].exception(LIMIT).__cause__) or found[1].traceback
        assert found[2].result(LIMIT) == 0.125
        assert [future.attempts for future in found] == [1, 1, 1]
        assert reader.results() == {futures[0].key: 0.25, "named": 0.125}
        assert list(reader.failures()) == [futures[1].key]
    assert there.results(["named"]) == {"named": 0.125}
    assert there.results([futures[0].key, "named", "nobody"]) == {futures[0].key: 0.25, "named": 0.125}
    assert list(there.failures([futures[1].key, "named"])) == [futures[1].key]


def test_many_of_another_client(pool: QueuePool, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for a few at a time: thousands of connections at once would be answered by nobody."""
    there = other(pool)
    for n in range(1000):
        pool.options(key=f"k{n}").submit(abs, -n)
    pool.join(timeout=LIMIT)
    connection = there._connection
    honest, under_way = connection.call, [0]

    async def call(index: int, op: str, **arguments: Any) -> Any:
        under_way.append(under_way[-1] + (op == "subscribe"))
        try:
            return await honest(index, op, **arguments)
        finally:
            under_way.append(under_way[-1] - (op == "subscribe"))

    monkeypatch.setattr(connection, "call", call)
    assert there.results([f"k{n}" for n in range(1000)]) == {f"k{n}": n for n in range(1000)}
    assert 1 <= max(under_way) <= 64


def test_a_task_that_is_not_done(pool: QueuePool, other: Any, tmp_path: Path, eventually: Any) -> None:
    """Its future waits, as often as it is asked for; results() does not wait and leaves nothing behind."""
    gate = tmp_path / "gate"
    pool.options(key="slow").submit(passing, str(gate), 5)
    there = other(pool)
    pool.flush()
    found = [there.get_future("slow"), there.get_future("slow"), pool.get_future("slow")]
    assert there.results(["slow"]) == {}
    assert pool.results(["slow"]) == {}
    assert not any(future.done() for future in found)
    with pytest.raises(TimeoutError):
        found[0].result(0.01)
    gate.touch()
    assert [future.result(LIMIT) for future in found] == [5, 5, 5]
    eventually(lambda: there._connection.finder._asked == {})


def test_just_submitted(idle: QueuePool) -> None:
    """What this client has submitted is found, whether it has reached its queue or not."""
    futures = [idle.options(key=f"k{n}").submit(abs, n) for n in range(100)]
    plain = idle.submit(abs, -1)
    assert idle.get_future("k99").key == "k99"
    assert idle.get_future(plain.key).key == plain.key
    assert not any(future.done() for future in futures)


def test_unknown(pool: QueuePool, other: Any) -> None:
    """KeyError, with the key."""
    pool.submit(abs, 1).result(LIMIT)
    there = other(pool)
    for key in ("nobody", task_key(1, 2), item_key("0" * 32, 1)):
        with pytest.raises(KeyError, match=key):
            there.get_future(key)
    assert there.results(["nobody", task_key(1, 2)]) == {}


def test_expired(client: Client, other: Any) -> None:
    """A stream's value is gone once it was read: ResultExpired for whoever asks by number, never a hang."""
    with QueuePool(client) as pool, ConsumerPool(client, pool):
        batch = pool.submit_many(abs, range(3))
        assert batch.results(LIMIT) == [0, 1, 2]
        pool.join(timeout=LIMIT)
        there = other(pool)
        error = there.get_future(batch[1].key).exception(LIMIT)
        assert isinstance(error, ResultExpired)
        assert batch[1].key in str(error)
        assert there.results([batch[1].key]) == {}


def test_a_collected_result_expires(client: Client, other: Any, eventually: Any) -> None:
    """Interleaving 18: collected, `result_ttl` over, read again by number: ResultExpired; by key nobody knows it."""
    with QueuePool(client, result_ttl=0.2) as pool, ConsumerPool(client, pool):
        future = pool.submit(abs, -1)
        keyed = pool.options(key="expires").submit(abs, -2)
        assert (future.result(LIMIT), keyed.result(LIMIT)) == (1, 2)
        there = other(pool)
        eventually(lambda: isinstance(there.get_future(future.key).exception(LIMIT), ResultExpired), LIMIT)
        eventually(lambda: not there.results(["expires"]), LIMIT)
        with pytest.raises(KeyError):
            there.get_future("expires")
        assert future.result() == 1  # whoever had it still has it


def test_the_same_key_from_two_clients(pool: QueuePool, other: Any, oracle: Any) -> None:
    """It runs once, and both find it under its key."""
    there = other(pool)
    for each in (pool, there, pool):
        assert each.options(key="shared").submit(oracle.mark, "run").result(LIMIT) is None
    refused = there.options(key="shared", on_duplicate="raise").submit(oracle.mark, "run")
    assert isinstance(refused.exception(LIMIT), DuplicateKey)
    assert oracle.lines() == ["run"]
    for each in (pool, there):
        assert each.results(["shared", "other"]) == {"shared": None}
        assert each.failures(["shared"]) == {}
        assert each.get_future("shared").result(LIMIT) is None


def test_forget(pool: QueuePool, other: Any) -> None:
    """Gone for everybody; the key is free; what failed stays."""
    named = pool.options(key="named").submit(abs, -1)
    plain = pool.submit(abs, -2)
    failed = pool.submit(operator.truediv, 1, 0)
    pool.join(timeout=LIMIT)
    there = other(pool)
    assert there.forget(["named", plain.key, failed.key, "nobody"]) == 2
    assert pool.results() == {}
    assert list(pool.failures()) == [failed.key]
    for reader in (pool, there):
        with pytest.raises(KeyError):
            reader.get_future("named")
    assert pool.options(key="named").submit(abs, -3).result(LIMIT) == 3
    assert named.result(0) == 1


# -------------------------------------------------------------------------------------------------------------- cancel


def test_cancel(idle: QueuePool, other: Any, client: Client, oracle: Any) -> None:
    """By key, from any client; what has not begun never runs, and its future has heard of it."""
    futures = [idle.submit(oracle.mark, n) for n in range(4)]
    named = idle.options(key="named").submit(oracle.mark, "named")
    assert idle.cancel([futures[0].key, "nobody"]) == 1
    assert futures[0].cancelled()
    idle.flush()
    assert idle.cancel([futures[1].key]) == 1
    assert futures[1].cancelled()
    there = other(idle)
    assert there.cancel([futures[2].key, "named", futures[2].key]) == 2
    assert there.cancel([futures[2].key, "named"]) == 0
    with ConsumerPool(client, idle):
        assert futures[3].result(LIMIT) is None
        for future in (*futures[:3], named):
            with pytest.raises(cf.CancelledError):
                future.result(LIMIT)
    assert oracle.lines() == ["3"]
    assert idle.cancel([]) == 0


def test_cancel_in_a_full_queue(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the queue ends at once, which makes room; what waits for room is waited for, but not for ever."""
    monkeypatch.setattr("daskqueue.client.cancelling.CANCEL_S", LIMIT)
    with QueuePool(client, maxsize=4) as pool:
        futures = [pool.submit(abs, -n) for n in range(4)]
        pool.flush()
        futures += [pool.submit(abs, -n) for n in range(4, 8)]
        assert pool.cancel([futures[4].key, futures[2].key]) == 2
        assert [future.cancelled() for future in futures] == [n in (2, 4) for n in range(8)]
        monkeypatch.setattr("daskqueue.client.cancelling.CANCEL_S", 0.1)
        assert pool.cancel([futures[7].key]) == 0
        with ConsumerPool(client, pool):
            assert [futures[n].result(LIMIT) for n in (0, 1, 3, 5, 6)] == [0, 1, 3, 5, 6]


def test_cancel_in_the_buffer() -> None:
    """Calls that have not left are found by their numbers; the others stay, in order, and with their keys."""
    numbers = iter(range(9))
    session: Any = SimpleNamespace(
        id=7,
        link=None,
        on_loop=True,
        numbers=lambda _: next(numbers),
        soon=lambda *_: None,
        check_here=lambda: None,
    )
    memory = Memory(ttl=None, max_bytes=None)
    home: Any = SimpleNamespace(client_id=7, name_task=memory.name, unname_task=memory.unname)
    submitter = Submitter(session, Route("pool", []), [ProducerStream("uuid", lambda: 1)], home)
    futures = [submitter.submit(EncodedFunction(b"f", b"h"), b"x", Terms(), 0, f"k{n}") for n in range(5)]
    assert submitter.withdraw_numbers({1, 3, 8}) == {1, 3}
    assert [future.cancelled() for future in futures] == [False, True, False, True, False]
    assert [call.future for call in submitter._calls] == [futures[0], futures[2], futures[4]]
    assert submitter.withdraw(futures[4])
    assert memory._numbers == {"k0": [0], "k2": [2]}


def test_cancel_of_what_was_not_sent(cluster: Any) -> None:
    """In the buffer, and behind the first put, which goes alone: both end here."""

    async def run() -> None:
        async with (
            Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client,
            QueuePool(client) as pool,
        ):
            sent = pool.submit(abs, 0)
            await asyncio.sleep(0)
            behind = pool.options(key="behind").submit(abs, 1)
            await asyncio.sleep(0)
            buffered = [pool.submit(abs, n) for n in range(3)]
            assert await pool.cancel(["behind", buffered[1].key]) == 2
            assert behind.cancelled()
            assert [future.cancelled() for future in buffered] == [False, True, False]
            assert await pool.cancel([sent.key, buffered[0].key]) == 2

    asyncio.run(run())


def test_cancelled_when_it_returns(client: Client, idle: QueuePool) -> None:
    """The future has heard of it by then, whatever becomes of the poll."""
    future = idle.submit(abs, 1)
    idle.flush()
    for poll in idle._connection.collector._polls:
        client.loop.add_callback(poll.cancel)
    assert idle.cancel([future.key]) == 1
    assert future.cancelled()


def test_cancel_of_a_found_future(idle: QueuePool, other: Any, client: Client, oracle: Any) -> None:
    """As of any other."""
    mine = idle.options(key="k").submit(oracle.mark, 1)
    there = other(idle)
    idle.flush()
    found = there.get_future("k")
    assert found.cancel()
    assert found.cancelled()
    assert found.cancel()
    with pytest.raises(cf.CancelledError):
        mine.result(LIMIT)
    with ConsumerPool(client, idle):
        idle.join(timeout=LIMIT)
    assert oracle.lines() == []


def test_cancel_of_what_follows_another(pool: QueuePool, tmp_path: Path) -> None:
    """A second future under a key gives up by itself; cancelling the key ends the task for all."""
    gate = tmp_path / "gate"
    first = pool.options(key="k").submit(passing, str(gate), 1)
    second = pool.options(key="k").submit(passing, str(gate), 2)
    third = pool.options(key="k").submit(passing, str(gate), 3)
    pool.flush()
    assert second.cancel()
    gate.touch()
    assert first.result(LIMIT) == third.result(LIMIT) == 1
    assert second.cancelled()


# ------------------------------------------------------------------------------------------------------------ a loss


def test_queue_lost(new_workers: Callable[..., Any], victims: Any, new_client: Any, tmp_path: Path) -> None:
    """What is put again keeps its key and is found under it; what had ended is read from this client's memory."""
    workers = new_workers(2)
    gate = tmp_path / "gate"
    with QueuePool(workers.client, name="lossy") as pool, ConsumerPool(workers.client, pool):
        done = pool.options(key="done").submit(abs, -1)
        failed = pool.options(key="failed").submit(operator.truediv, 1, 0)
        plain = pool.submit(abs, -2)
        cf.wait([done, failed, plain], LIMIT)
        pool.forget(["done"])
        again = pool.options(key="done").submit(abs, -7)
        assert again.result(LIMIT) == 7
        waiting = pool.options(key="waiting").submit(passing, str(gate), 3)
        there = QueuePool.attach(new_client(workers.cluster), "lossy")
        pool.flush()
        found, elsewhere = pool.get_future("waiting"), there.get_future("waiting")
        assert len(pool.dead_letters()) == 1
        victim = victims(workers.client)
        victim.kill(victim.host(pool))
        gate.touch()
        assert waiting.result(LIMIT) == found.result(LIMIT) == 3
        assert isinstance(elsewhere.exception(LIMIT), (QueueLost, type(None)))
        assert pool.results() == {"done": 7, plain.key: 2, "waiting": 3}
        assert list(pool.failures()) == ["failed"]
        assert pool.dead_letters() == []
        assert pool.get_future("done").result(LIMIT) == 7
        assert isinstance(pool.get_future("failed").exception(LIMIT), ZeroDivisionError)
        assert pool.get_future("waiting").result(LIMIT) == 3
        with pytest.raises(KeyError):
            there.get_future("done")
        pool.forget(["done"])
        assert "done" not in pool.results()


# ------------------------------------------------------------------------------------------------------------- memory


def test_memory_of_lives() -> None:
    """Only lives that are over are read; forgotten tasks are not."""
    memory = Memory(ttl=None, max_bytes=None)
    memory.ended("old", Outcome(10, 0, 3, (), b"values"), keeps=True)
    memory.ended("new", Outcome(20, 0, 1, (), b"values"), keeps=True)
    assert memory.lost({"old", "new"}) == []
    assert [outcome.first for outcome in memory.lost({"new"})] == [10]
    assert memory.find_lost(11, {"new"}) == (Outcome(10, 0, 3, (), b"values"), 1)
    assert memory.find_lost(20, {"new"}) is None
    memory.forget([11])
    assert memory.find_lost(11, {"new"}) is None
    assert memory.find_lost(12, {"new"}) is not None


def test_memory_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key goes with its result; of one key the last number counts."""
    now = [0]
    monkeypatch.setattr("daskqueue.client.memory.time.monotonic_ns", lambda: now[0])
    memory = Memory(ttl=100, max_bytes=None)
    for number, key in ((1, "a"), (2, "b"), (3, "a")):
        memory.name(number, key)
    assert (memory.number_of("a"), memory.key_of(1), memory.key_of(4)) == (3, "a", None)
    memory.ended("life", Outcome(1, 0, 2), keeps=True)
    memory.ended("life", Outcome(3, 0, 1), keeps=False)
    assert (memory.number_of("a"), memory.key_of(3)) == (1, None)
    now[0] = 99
    memory.ended("life", Outcome(50, 0, 2000), keeps=True)
    assert memory.key_of(1) == "a"
    now[0] = 100
    memory.ended("life", Outcome(60, 0, 1), keeps=True)
    assert (memory.key_of(1), memory.key_of(2), memory.number_of("b")) == (None, None, None)


def test_memory_of_what_was_not_put() -> None:
    """A duplicate leaves the key to the task that has it."""
    memory = Memory(ttl=None, max_bytes=None)
    memory.name(1, "k")
    memory.name(2, "k")
    memory.ended("old", Outcome(1, 0, 1, (), b"values"), keeps=True)
    memory.ended("old", Outcome(2, 0, 1, end=End.DUPLICATE), keeps=True)
    assert memory.number_of("k") == 1
    assert memory.find_lost(2, ()) is None
    assert memory.find_lost(1, ()) is not None


def test_memory_of_keys_that_were_too_much() -> None:
    """A key goes with its result, whatever drops that."""
    memory = Memory(ttl=None, max_bytes=3000)
    for number in range(100):
        memory.name(number, f"k{number}")
        memory.ended("life", Outcome(number, 0, 1, (), bytes(1000)), keeps=True)
    assert [number for number in range(100) if memory.key_of(number)] == [98, 99]
    memory.forget([98])
    assert (memory.key_of(98), memory.number_of("k98"), memory.key_of(99)) == (None, None, "k99")


def test_memory_that_keeps_nothing() -> None:
    """Of a pool whose queues are never lost: neither results nor keys of what has ended."""
    memory = Memory(ttl=None, max_bytes=None, keeps=False)
    memory.name(1, "a")
    memory.name(2, "b")
    memory.ended("life", Outcome(1, 0, 1, (), b"values"), keeps=True)
    assert (memory.number_of("a"), memory.number_of("b")) == (None, 2)
    assert memory.lost(()) == []


def test_keys_of_what_ended_without_an_outcome(idle: QueuePool) -> None:
    """They ended with their queue: the client does not remember them for ever."""
    numbers = idle._connection.memory._numbers
    futures = [idle.options(key=f"k{n}").submit(abs, n) for n in range(3)]
    assert sorted(numbers) == ["k0", "k1", "k2"]
    idle.flush()
    idle._connection.session.run(gone(idle))
    assert all(isinstance(future.exception(0), QueueLost) for future in futures)
    assert numbers == {}


async def gone(pool: QueuePool) -> None:
    """The pool ends, and with it what is unfinished."""
    pool._connection.over(PoolGone(pool.name))


# ------------------------------------------------------------------------------------------------------- asynchronous


def test_asynchronous(cluster: Any, tmp_path: Path) -> None:
    """The same calls, awaited."""
    gate = tmp_path / "gate"

    async def run() -> None:
        async with (
            Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client,
            QueuePool(client, n_queues=2) as pool,
            ConsumerPool(client, pool),
        ):
            view = pool.options(key="k", timeout=30, retry=RetryPolicy(2))
            assert await view.submit(abs, -1) == 1
            assert await (await pool.get_future("k")) == 1
            with pytest.raises(KeyError):
                await pool.get_future("nobody")
            slow = pool.options(key="slow").submit(passing, str(gate), 3)
            found = await pool.get_future("slow")
            assert await pool.results(["k", "slow"]) == {"k": 1}
            later = pool.options(delay=60).submit(abs, 1)
            assert await pool.cancel([later.key]) == 1
            assert later.cancelled()
            gate.touch()
            assert await found == await slow == 3
            assert await pool.forget(["k"]) == 1
            with pytest.raises(DuplicateKey):
                await pool.options(key="slow", on_duplicate="raise").submit(abs, 1)
            await pool.options(key="item").put("item")
            assert await pool.purge("ready") == 1

    asyncio.run(run())
