"""Dead letters: what is said of a task that failed for good, and running, purging or replacing it."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import operator
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import (
    ConsumerBaseClass,
    ConsumerPool,
    DeadTask,
    MessageState,
    QueuePool,
    Reject,
    ResultExpired,
    RetryPolicy,
    TaskTimeout,
)
from daskqueue.client.dead_tasks import dead_tasks
from daskqueue.client.naming import item_key
from daskqueue.wire.errors import RemoteError, encode_error
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.outcomes import End

LIMIT = 60


@pytest.fixture
def pool(client: Client) -> Iterator[QueuePool]:
    """A pool of two queues with one consumer on each worker."""
    pool = QueuePool(client, n_queues=2)
    ConsumerPool(client, pool).start()
    yield pool
    pool.shutdown(cancel_futures=True)


def moody(path: str, value: int) -> int:
    """Fails until a file is there."""
    if not Path(path).exists():
        raise LookupError(f"not yet: {value}")
    return value


class Unreadable(Exception):
    """Its `__str__` raises."""

    def __str__(self) -> str:
        raise RuntimeError


def letter(**fields: Any) -> DeadLetter:
    """One that says little."""
    blank = DeadLetter(3, 7, 5, None, "text", b"", 1, 0, "failed", "tcp://a:1#0f", 10**18, 10**18 + 10**9, End.RUN)
    return blank._replace(**fields)


# ----------------------------------------------------------------------------------------------------- what they say


def test_what_they_say(pool: QueuePool) -> None:
    """Error, traceback, attempts, worker and times, of each that failed for good."""
    before = datetime.now(timezone.utc)
    policy = RetryPolicy(3, backoff=0)
    future = pool.options(retry=policy, key="divide").submit(operator.truediv, 1, 0)
    assert isinstance(future.exception(LIMIT), ZeroDivisionError)
    assert future.attempts == 3
    (dead,) = pool.dead_letters()
    assert isinstance(dead, DeadTask)
    assert (dead.key, dead.error_type, dead.message) == ("divide", "ZeroDivisionError", "division by zero")
    assert isinstance(dead.error, ZeroDivisionError)
    assert "ZeroDivisionError: division by zero" in dead.traceback
    assert (dead.attempts, dead.crashes, dead.reason) == (3, 0, "failed")
    assert dead.worker in pool._session.client.scheduler_info(n_workers=-1)["workers"]
    assert before - timedelta(seconds=1) <= dead.submitted_at <= dead.failed_at <= datetime.now(timezone.utc)
    assert dead.submitted_at.tzinfo is timezone.utc


def test_why(pool: QueuePool) -> None:
    """Rejected and late tasks say so; whoever is cancelled or expires is no dead letter."""

    def reject() -> None:
        raise Reject("broken for good")

    async def slow() -> None:
        await asyncio.sleep(30)

    policy = RetryPolicy(5, backoff=0)
    rejected = pool.options(retry=policy).submit(reject)
    late = pool.options(timeout=0.1).submit(slow)
    cancelled = pool.options(delay=60).submit(abs, 1)
    assert isinstance(rejected.exception(LIMIT), Reject)
    assert isinstance(late.exception(LIMIT), TaskTimeout)
    assert pool.cancel([cancelled.key]) == 1
    reasons = {dead.key: (dead.reason, dead.attempts) for dead in pool.dead_letters()}
    assert reasons == {rejected.key: ("rejected", 1), late.key: ("timeout", 1)}


def test_limit_and_pages(pool: QueuePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All, or as many as asked for, whatever goes into one answer."""
    monkeypatch.setattr("daskqueue.client.administration.LETTERS", 7)
    batch = pool.submit_many(operator.inv, ["no"] * 40 + [1])
    assert batch.wait(LIMIT)
    more = [pool.submit(operator.inv, "no") for _ in range(20)]
    for future in more:
        assert future.exception(LIMIT) is not None
    assert len({dead.key for dead in pool.dead_letters()}) == 60
    assert [len(pool.dead_letters(limit)) for limit in (0, 1, 7, 8, 59, 60, 1000)] == [0, 1, 7, 8, 59, 60, 60]
    assert {batch[3].key, more[3].key} <= {dead.key for dead in pool.dead_letters()}
    for limit in (-1, 1.5, True, "all"):
        with pytest.raises(ValueError, match="limit"):
            pool.dead_letters(limit)  # type: ignore[arg-type]


def test_a_class_that_is_missing_here(pool: QueuePool) -> None:
    """A RemoteError with its name and message."""

    def fail() -> None:
        import sys
        import types

        module = sys.modules["only_elsewhere"] = types.ModuleType("only_elsewhere")
        module.Odd = type("Odd", (Exception,), {"__module__": "only_elsewhere"})  # type: ignore[attr-defined]
        raise module.Odd("strange")

    pool.submit(fail).exception(LIMIT)
    (dead,) = pool.dead_letters()
    assert isinstance(dead.error, RemoteError)
    assert (dead.error_type, dead.message) == ("only_elsewhere.Odd", "strange")


def test_reading_letters() -> None:
    """Of what nobody waited for, of crashes, of what had no room left, of odd exceptions."""
    blob, text = encode_error(Unreadable())
    item, crashed, short, odd = dead_tasks(
        [
            ("ab" * 16, letter(client=0, number=3, blob=encode_error(KeyError("k"))[0])),
            ("ab" * 16, letter(end=End.CRASHED, text="tcp://a:1#0f was lost", crashes=3, reason="crashed")),
            ("ab" * 16, letter(text="Traceback ...\nLookupError: gone\n")),
            ("ab" * 16, letter(blob=blob, text=text, key="k")),
        ]
    )
    assert (item.key, item.error_type, item.message) == (item_key("ab" * 16, 3), "KeyError", "'k'")
    assert (crashed.error_type, crashed.crashes) == ("daskqueue_core.errors.WorkerCrashed", 3)
    assert crashed.message == "tcp://a:1#0f was lost"
    assert isinstance(short.error, RemoteError)
    assert "LookupError: gone" in short.message
    assert "no room" in short.message
    assert short.worker == "tcp://a:1"
    assert odd.key == "k"
    assert odd.message == "<exception str() failed>"
    assert item.submitted_at == datetime.fromtimestamp(10**9, timezone.utc)
    assert item.failed_at - item.submitted_at == timedelta(seconds=1)


# ----------------------------------------------------------------------------------------------------------- requeue


def test_requeue(pool: QueuePool, tmp_path: Path) -> None:
    """A new life: futures of the old one keep their outcome, get_future gives the new one."""
    gate = tmp_path / "gate"
    named = pool.options(key="named").submit(moody, str(gate), 1)
    plain = pool.submit(moody, str(gate), 2)
    batch = pool.submit_many(moody, [])
    many = pool.batch_submit([(moody, str(gate), n) for n in range(10, 15)])
    for future in (named, plain, *many):
        assert isinstance(future.exception(LIMIT), LookupError)
    assert len(batch) == 0
    assert pool.requeue([plain.key]) == 1
    assert isinstance(pool.get_future(plain.key).exception(LIMIT), LookupError)
    gate.touch()
    assert pool.requeue(["named", many[2].key, "nobody"]) == 2
    found = pool.get_future("named")
    assert found.result(LIMIT) == 1
    assert (found.life, found.attempts) == (1, 1)
    assert pool.get_future(many[2].key).result(LIMIT) == 12
    assert isinstance(named.exception(0), LookupError)
    assert (named.life, named.attempts) == (0, 1)
    assert pool.requeue("all") == 5
    second = pool.get_future(plain.key)
    assert (second.result(LIMIT), second.life) == (2, 2)
    pool.join(timeout=LIMIT)
    assert pool.dead_letters() == []
    assert pool.failures() == {}
    assert sorted(pool.results().values()) == [1, 2, 10, 11, 12, 13, 14]
    assert pool.requeue("all") == 0
    with pytest.raises(TypeError, match="list of keys"):
        pool.requeue("everything")


class Failing(ConsumerBaseClass):
    """Fails until a file is there."""

    path = ""
    oracle: Any = None

    def process_item(self, item: Any) -> None:
        """A line when it does not."""
        if not Path(self.path).exists():
            raise LookupError(item)
        self.oracle.mark(item)


def test_items(client: Client, tmp_path: Path, oracle: Any) -> None:
    """Items without key have one in dead letters, by which they are requeued, looked up, and purged."""
    gate = tmp_path / "gate"
    serving = type("Serving", (Failing,), {"path": str(gate), "oracle": oracle})
    with QueuePool(client, n_queues=2) as pool, ConsumerPool(client, pool, serving):
        pool.put_many(["a", "b", "c"])
        pool.put_many(["d"])
        pool.options(key="named").put("e")
        pool.join(timeout=LIMIT)
        dead = {str(each.error): each.key for each in pool.dead_letters()}
        assert set(dead) == {"a", "b", "c", "d", "e"}
        assert dead["e"] == "named"
        assert isinstance(pool.get_future(dead["b"]).exception(LIMIT), LookupError)
        gate.touch()
        assert pool.requeue([dead["b"], "named"]) == 2
        pool.join(timeout=LIMIT)
        assert sorted(oracle.lines()) == ["b", "e"]
        gone = item_key("0" * 32, 1)
        assert pool.requeue([gone]) == pool.forget([gone]) == pool.cancel([gone]) == 0
        assert len(pool.dead_letters()) == 3
        assert pool.purge("failed") == 3


# ------------------------------------------------------------------------------------------------------------- purge


def test_purge(client: Client, pool: QueuePool) -> None:
    """By state or its name; what waits is cancelled, results are forgotten, dead letters gone."""
    failed = pool.submit(operator.truediv, 1, 0)
    done = pool.submit(abs, -1)
    later = [pool.options(delay=60).submit(abs, -1) for _ in range(3)]
    assert failed.exception(LIMIT) is not None
    assert done.result(LIMIT) == 1
    pool.flush()
    assert pool.purge("scheduled") == 3
    for future in later:
        with pytest.raises(cf.CancelledError):
            future.result(LIMIT)
    assert pool.purge(MessageState.FAILED) == 1
    assert pool.purge("ACKED") == 1
    assert pool.results() == {}
    assert failed.key not in pool.failures()
    with pytest.raises((KeyError, ResultExpired)):
        pool.get_future(done.key).result(LIMIT)
    assert isinstance(failed.exception(0), ZeroDivisionError)


@pytest.mark.parametrize(
    ("state", "text"),
    [("faild", "did you mean 'failed'"), ("delivered", "cancel them"), (MessageState.GONE, "cannot"), (5, "one of")],
)
def test_bad_states(pool: QueuePool, state: Any, text: str) -> None:
    """ValueError at the call, with the states that can be purged."""
    with pytest.raises(ValueError, match=text):
        pool.purge(state)


# ------------------------------------------------------------------------------------------------------ other clients


def test_from_another_client(pool: QueuePool, new_client: Callable[..., Client], cluster: Any, tmp_path: Path) -> None:
    """They belong to the pool, not to who submitted them."""
    gate = tmp_path / "gate"
    future = pool.submit(moody, str(gate), 4)
    assert future.exception(LIMIT) is not None
    there = QueuePool.attach(new_client(cluster), pool.name)
    (dead,) = there.dead_letters()
    assert dead.key == future.key
    gate.touch()
    assert there.requeue([dead.key]) == 1
    assert there.get_future(dead.key).result(LIMIT) == 4
    assert pool.get_future(dead.key).result(LIMIT) == 4


def test_asynchronous(cluster: Any, tmp_path: Path) -> None:
    """The same calls, awaited."""
    gate = tmp_path / "gate"

    async def run() -> None:
        async with (
            Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client,
            QueuePool(client) as pool,
            ConsumerPool(client, pool),
        ):
            future = pool.submit(moody, str(gate), 1)
            with pytest.raises(LookupError):
                await future
            (dead,) = await pool.dead_letters()
            assert (dead.key, dead.error_type) == (future.key, "LookupError")
            gate.touch()
            assert await pool.requeue("all") == 1
            assert await (await pool.get_future(future.key)) == 1
            assert await pool.purge("failed") == 0
            with pytest.raises(ValueError, match="one of"):
                await pool.purge("x")

    asyncio.run(run())
