"""Options of single tasks: what is checked where, what travels together, and every call under them."""

from __future__ import annotations

import inspect
import itertools
import operator
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import ModuleType
from typing import Any

import pytest
from distributed import Client

from daskqueue import (
    ConsumerBaseClass,
    ConsumerPool,
    DaskQueueError,
    PoolExists,
    QueueExecutor,
    QueuePool,
    ResultExpired,
    RetryPolicy,
    TaskOptions,
)
from daskqueue.client.futures import KeyedFuture, TaskFuture
from daskqueue.client.gathering import Call, gather
from daskqueue.client.naming import queue_of
from daskqueue.client.options import pool_control, pool_options, pool_retry
from daskqueue.client.task_options import EXPIRES_STEP, NOTHING, Choice, Terms, choose, terms_of
from daskqueue.wire.control import Control, decode_control
from daskqueue.wire.functions import EncodedFunction
from daskqueue_core.batch import Keep, OnDuplicate, times_of
from daskqueue_core.directory import differences

LIMIT = 60
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def pool(shared_client: Client) -> Iterator[QueuePool]:
    """A pool with one consumer on each worker."""
    shared_client.wait_for_workers(2, timeout=30)
    with QueuePool(shared_client) as pool, ConsumerPool(shared_client, pool):
        yield pool


# ------------------------------------------------------------------------------------------------- checked at the call


@pytest.mark.parametrize(
    ("option", "value", "error", "text"),
    [
        *[
            (name, value, ValueError, name)
            for name in ("delay", "timeout", "expires")
            for value in (-1, NAN, INF, -INF)
        ],
        *[
            (name, value, TypeError, name)
            for name in ("delay", "timeout", "expires")
            for value in (True, "3", [1], "1h")
        ],
        *[(name, 1e300, ValueError, "100 years") for name in ("delay", "timeout", "expires")],
        *[(name, 0, ValueError, "above 0") for name in ("timeout", "expires")],
        ("eta", -1, ValueError, "eta"),
        ("eta", NAN, ValueError, "eta"),
        ("eta", "tomorrow", TypeError, "datetime"),
        ("eta", True, TypeError, "datetime"),
        ("eta", datetime(9000, 1, 1, tzinfo=timezone.utc), ValueError, "100 years"),
        ("eta", datetime(1960, 1, 1, tzinfo=timezone.utc), ValueError, "1970"),
        ("expires", datetime(9000, 1, 1, tzinfo=timezone.utc), ValueError, "expires"),
        ("priority", 1.5, TypeError, "whole number"),
        ("priority", True, TypeError, "whole number"),
        ("priority", "high", TypeError, "whole number"),
        ("priority", 0x8000, ValueError, "32767"),
        ("priority", -0x8001, ValueError, "-32768"),
        ("key", 3, TypeError, "string"),
        ("key", b"k", TypeError, "string"),
        ("key", "", ValueError, "empty"),
        ("key", "x" * 1025, ValueError, "1024"),
        ("key", "ä" * 513, ValueError, "1024"),
        ("key", "\ud800", ValueError, "UTF-8"),
        ("key", f"{7:016x}-3", ValueError, "put a word before it"),
        ("key", f"item-{'0' * 32}-3", ValueError, "put a word before it"),
        *[
            ("time_request", value, ValueError, "time_request")
            for value in (-1, NAN, INF, "-5m", "soon", "20 x", "", 1e300)
        ],
        *[("time_request", value, TypeError, "'90s'") for value in (True, [1], b"20m")],
        ("time_request", 0, ValueError, "above 0"),
        ("tags", ["time>=60"], ValueError, "time_request"),
        ("tags", "gpu", TypeError, r"\['gpu'\] is one tag"),
        ("tags", 3, TypeError, "list of strings"),
        ("tags", ["gpu", 3], TypeError, "must be a string"),
        ("tags", [""], ValueError, "empty"),
        ("tags", ["\ud800"], ValueError, "UTF-8"),
        ("retry", 3, TypeError, r"RetryPolicy\(max_attempts=3\)"),
        ("on_duplicate", "ignore", ValueError, "'return', 'raise', 'replace'"),
        ("on_duplicate", 1, ValueError, "'return'"),
        ("store_result", 0, TypeError, "True or False"),
    ],
)
def test_bad_values(option: str, value: Any, error: type[Exception], text: str) -> None:
    """Each names the option and what would do."""
    with pytest.raises(error, match=text) as raised:
        choose({option: value})
    assert option.rstrip("s") in str(raised.value)


@pytest.mark.parametrize("value", ["20m", "1200s", 1200, 1199.5, timedelta(minutes=20)])
def test_time_request(value: Any) -> None:
    """Travels as a tag, beside others, and in views of views."""
    asked = choose({"time_request": value, "tags": ["z", "a"]})
    assert asked.tags == ("a", "time>=1200", "z")
    assert choose({"priority": 1}, asked).tags == asked.tags
    assert choose({"time_request": None}, asked).tags == ("a", "z")


def test_zero_attempts() -> None:
    """A policy that never runs anything cannot be made."""
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=0)


def test_unknown_options(pool: QueuePool) -> None:
    """TypeError, with the one that may be meant; a type checker knows them by the signature."""
    with pytest.raises(TypeError, match="did you mean 'priority'"):
        pool.options(prority=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"it has .*timeout"):
        pool.options(xyz=1)  # type: ignore[call-arg]
    for method in (QueuePool.options, QueueExecutor.options):
        assert inspect.signature(method).parameters["options"].annotation == "Unpack[TaskOptions]"
    assert set(TaskOptions.__annotations__) == {
        "key", "on_duplicate", "priority", "delay", "eta", "expires", "timeout", "retry", "tags", "time_request",
        "store_result",
    }  # fmt: skip


def test_two_times(pool: QueuePool) -> None:
    """delay and eta say the same thing; None takes one back."""
    with pytest.raises(ValueError, match="twice"):
        pool.options(delay=1, eta=2)
    with pytest.raises(ValueError, match="twice"):
        pool.options(delay=1).options(eta=2)
    assert choose({"delay": None, "eta": 2}, choose({"delay": 1})).eta == 2 * 10**9


def test_none_is_not_given() -> None:
    """As if the option were not there."""
    assert choose(dict.fromkeys(TaskOptions.__annotations__)) == NOTHING


def test_a_policy_that_cannot_be_pickled() -> None:
    """An error at the call, not in the background."""

    class Odd(type):
        def __reduce_ex__(cls, protocol: Any) -> Any:
            raise RuntimeError("not me")

    broken = Odd("Broken", (Exception,), {"lock": threading.Lock()})
    with pytest.raises(Exception, match=r"not me|pickle"):
        choose({"retry": RetryPolicy(2, retry_on=(broken,))})


def test_views_of_views(pool: QueuePool) -> None:
    """Options add up, and the outer view stays as it was."""
    outer = pool.options(priority=1, timeout=3)
    inner = outer.options(priority=2, tags=["b", "a", "b"])
    assert (outer._choice.priority, outer._choice.tags) == (1, ())
    assert (inner._choice.priority, inner._choice.timeout, inner._choice.tags) == (2, 3.0, ("a", "b"))
    assert "priority=2" in repr(inner)
    assert pool.name in repr(inner)


# ---------------------------------------------------------------------------------------------------------------- times


def test_times() -> None:
    """Nanoseconds of the wall clock, from the call that submits on."""
    before = time.time_ns()
    assert before + 2 * 10**9 <= choose({"delay": 2}).ready_at() <= time.time_ns() + 2 * 10**9
    assert choose({"delay": 0}).ready_at() == 0
    assert choose({"eta": 1.5}).ready_at() == 1_500_000_000
    when = datetime.now(timezone.utc) + timedelta(hours=1)
    assert choose({"eta": when}).ready_at() == round(when.timestamp() * 1e9)
    assert choose({"eta": when.astimezone().replace(tzinfo=None)}).ready_at() == round(when.timestamp() * 1e9)
    assert choose({"expires": when}).expiry() == round(when.timestamp() * 1e9)
    assert choose({}).expiry() == 0


def test_relative_expiry_is_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a loop expire together, and never too early."""
    choice = choose({"expires": 0.005})
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_001)
    assert choice.expiry() == 1_000_000_000 + EXPIRES_STEP
    monkeypatch.setattr(time, "time_ns", lambda: 1_004_999_999)
    assert choice.expiry() == 1_000_000_000 + EXPIRES_STEP


# ---------------------------------------------------------------------------------------------------------------- terms


def test_terms_of_nothing() -> None:
    """What ordinary tasks bring costs no bytes."""
    assert terms_of(NOTHING, Keep.KEEP) == Terms()
    assert Terms().control == b""


def test_precedence_of_policies() -> None:
    """The task's own, then the pool's; a timeout alone does not hide the pool's."""
    own, pools = RetryPolicy(2, max_crashes=5), RetryPolicy(3, max_crashes=7)
    options = pool_options({"retry": pools})
    control, max_crashes = pool_control(options)
    plain = Terms(control=control, max_crashes=max_crashes)

    def under(**given: Any) -> tuple[Control, int]:
        terms = terms_of(choose(given), Keep.KEEP, plain, lambda: pool_retry(options))
        return decode_control(terms.control), terms.max_crashes

    assert under() == under(priority=3) == (Control(None, pools), 7)
    assert under(timeout=3) == (Control(3.0, pools), 7)
    assert under(retry=own) == (Control(None, own), 5)
    assert under(retry=own, timeout=3) == (Control(3.0, own), 5)


def test_a_policy_of_classes_that_are_missing_here() -> None:
    """It travels on as it came; only a timeout beside it would have to be written into it."""
    module = ModuleType("soon_gone")
    module.Odd = type("Odd", (Exception,), {"__module__": "soon_gone"})  # type: ignore[attr-defined]
    sys.modules["soon_gone"] = module
    options = pool_options({"retry": RetryPolicy(2, retry_on=(module.Odd,))})
    del sys.modules["soon_gone"]
    control, max_crashes = pool_control(options)
    plain = Terms(control=control, max_crashes=max_crashes)
    assert terms_of(choose({"priority": 1}), Keep.KEEP, plain, lambda: pool_retry(options)).control == control
    with pytest.raises(DaskQueueError, match=r"retry_on=.*Odd.*cannot be loaded here.*soon_gone.*options\(retry="):
        terms_of(choose({"timeout": 1}), Keep.KEEP, plain, lambda: pool_retry(options))


@pytest.mark.parametrize(
    ("given", "keep", "expected"),
    [
        ({}, Keep.STREAM, Keep.STREAM),
        ({"key": "k"}, Keep.STREAM, Keep.KEEP),
        ({"key": "k"}, Keep.NONE, Keep.NONE),
        ({"store_result": False}, Keep.KEEP, Keep.STREAM),
        ({"store_result": False, "key": "k"}, Keep.KEEP, Keep.STREAM),
        ({"store_result": False}, Keep.NONE, Keep.NONE),
    ],
)
def test_who_keeps(given: dict[str, Any], keep: Keep, expected: Keep) -> None:
    """Whoever names a task asks for it by that name; what is not stored only says that it ended."""
    assert terms_of(choose(given), keep).keep is expected


# --------------------------------------------------------------------------------------------------- what goes together

FUNCTION = EncodedFunction(b"shared", b"hash")


class HomeOfNobody:
    """A home for futures that are only gathered."""

    client_id = 7
    callbacks: Any = None


def calls_of(choices: list[Choice], *, first: int = 0) -> deque[Call]:
    """Calls numbered in a row."""
    calls: deque[Call] = deque()
    for number, choice in enumerate(choices, first):
        condition = threading.Condition()
        home: Any = HomeOfNobody()
        future = TaskFuture(home, number, condition)
        if choice.key is not None:
            future = KeyedFuture(home, number, condition, choice.key)
        calls.append(Call(FUNCTION, b"x", future, terms_of(choice, Keep.KEEP), choice.ready_at()))
    return calls


def gathered(choices: list[Choice], n_queues: int = 1) -> list[Any]:
    """All batches of these calls."""
    calls, out = calls_of(choices), []
    while calls:
        out.append(gather(calls, 7, 1000, n_queues))
    return out


def test_equal_terms_travel_together() -> None:
    """Equal, not the same object: each call of a loop may make a view of its own."""
    batches = gathered([choose({"priority": 3, "tags": ["a"], "timeout": 5}) for _ in range(10)])
    assert [each.batch.count for each in batches] == [10]
    batch = batches[0].batch
    assert (batch.priority, batch.tags, batch.first, batch.keys, batch.ready_ats) == (3, ("a",), 0, (), b"")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"priority": 1}),
        ({}, {"timeout": 1}),
        ({}, {"tags": ["a"]}),
        ({}, {"expires": 100}),
        ({}, {"key": "k"}),
        ({}, {"delay": 5}),
        ({}, {"store_result": False}),
        ({"key": "k"}, {"key": "l", "on_duplicate": "raise"}),
    ],
)
def test_other_terms_do_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    """A batch has one set of options, and keys or times for all of its messages or for none."""
    mixed = [choose(one), choose(one), choose(other), choose(other), choose(one)]
    if "key" in one or "key" in other:
        mixed = [choose({**each.given, "key": f"k{at}"}) if each.key else each for at, each in enumerate(mixed)]
    assert [each.batch.count for each in gathered(mixed)] == [2, 2, 1]


def test_times_and_keys_are_columns() -> None:
    """Distinct ones in one batch."""
    (timed,) = gathered([choose({"eta": 10 + n}) for n in range(5)])
    assert list(times_of(timed.batch.ready_ats)) == [(10 + n) * 10**9 for n in range(5)]
    (keyed,) = gathered([choose({"key": f"k{n}", "on_duplicate": "replace"}) for n in range(5)])
    assert keyed.batch.keys == ("k0", "k1", "k2", "k3", "k4")
    assert (keyed.batch.on_duplicate, keyed.queue) == (OnDuplicate.REPLACE, 0)
    timed.batch.check()
    keyed.batch.check()


def test_keys_choose_the_queue() -> None:
    """A batch ends where the next key names another queue; none is lost."""
    keys = [f"k{n}" for n in range(50)]
    batches = gathered([choose({"key": key}) for key in keys], n_queues=3)
    assert list(itertools.chain.from_iterable(each.batch.keys for each in batches)) == keys
    for each in batches:
        assert {queue_of(key, 3) for key in each.batch.keys} == {each.queue}
    assert {each.queue for each in batches} == {0, 1, 2}


# ---------------------------------------------------------------------------------------------------------- every call


def test_every_call(pool: QueuePool) -> None:
    """submit, map, submit_many and batch_submit do under options what they do without."""
    view = pool.options(priority=5, timeout=30, retry=RetryPolicy(2), expires=60)
    assert view.submit(operator.neg, 1).result(LIMIT) == -1
    assert view.submit(int, "11", base=2).result(LIMIT) == 3
    assert list(view.map(operator.add, range(2000), range(2000))) == [2 * n for n in range(2000)]
    assert list(itertools.islice(view.map(abs, itertools.count(-5), buffersize=10), 3)) == [5, 4, 3]
    assert view.submit_many(abs, range(-3, 0)).results(LIMIT) == [3, 2, 1]
    batch = view.batch_submit([(abs, -1), (operator.mul, 2, 3)])
    assert batch.results(LIMIT) == [1, 6]
    assert set(pool.results([future.key for future in batch]).values()) == {1, 6}


def test_a_key_names_one_task(pool: QueuePool) -> None:
    """The calls for many refuse it, and nothing is sent."""
    view = pool.options(key="one")
    for call in (
        lambda: view.map(abs, [1]),
        lambda: view.submit_many(abs, [1]),
        lambda: view.batch_submit([(abs, 1)]),
        lambda: view.put_many([1]),
    ):
        with pytest.raises(TypeError, match="use submit or put"):
            call()
    with pytest.raises(KeyError):
        pool.get_future("one")


def test_results_that_nobody_stores(pool: QueuePool) -> None:
    """Futures end with None, failures still fail, and nothing can be read by key."""
    view = pool.options(store_result=False)
    futures = [view.submit(operator.truediv, 1, n) for n in (2, 0)]
    assert futures[0].result(LIMIT) is None
    with pytest.raises(ZeroDivisionError):
        futures[1].result(LIMIT)
    assert pool.submit_many(abs, range(5), store_result=False).results(LIMIT) == [None] * 5
    assert view.batch_submit([(abs, 1), (abs, 2)]).results(LIMIT) == [None, None]
    assert pool.results([future.key for future in futures]) == {}
    with pytest.raises(ResultExpired, match="store_result=False"):
        pool.get_future(futures[0].key).result(LIMIT)
    with pytest.raises(TypeError, match="submit_many"):
        view.map(abs, [1])


class Noting(ConsumerBaseClass):
    """Writes items down."""

    oracle: Any = None

    def process_item(self, item: Any) -> None:
        """A line each."""
        self.oracle.mark(item)


def test_items(client: Client, oracle: Any, eventually: Callable[..., Any]) -> None:
    """put and put_many under options: in order of priority, delayed ones when they are due."""
    with QueuePool(client) as pool:
        pool.options(delay=3600).put("much too late")
        pool.put_many(["plain-1", "plain-2"])
        pool.options(priority=2).put_many(["high-1", "high-2"])
        pool.options(priority=-1, timeout=30).put("low", timeout=5)
        pool.options(priority=9).put("first", block=False)
        served = type("Served", (Noting,), {"oracle": oracle})
        with ConsumerPool(client, pool, served, n_consumers=1, concurrency=1):
            pool.options(priority=-2, delay=0.1).put("late")
            eventually(lambda: "late" in oracle.lines())
            assert pool.purge("scheduled") == 1
    assert oracle.lines() == ["first", "high-1", "high-2", "plain-1", "plain-2", "low", "late"]


def test_a_view_travels(pool: QueuePool) -> None:
    """A task that is handed a view submits under its options."""

    def parent(view: Any) -> str:
        future = view.submit(abs, -8)
        return str(future.key)

    key = pool.submit(parent, pool.options(key="from a task", priority=1)).result(LIMIT)
    assert key == "from a task"
    assert pool.get_future(key).result(LIMIT) == 8


def test_choices_pickle() -> None:
    """As they were checked."""
    choice = choose({"tags": {"a", "b"}, "delay": 3, "retry": RetryPolicy(3)})
    assert pickle.loads(pickle.dumps(choice)) == choice


def test_executor(client: Client) -> None:
    """The same options; results stream, but for those that have a key."""
    with QueueExecutor(client, retries=1, tags=["fast"]) as executor:
        view = executor.options(tags=["fast"], timeout=30)
        assert view.submit(abs, -1).result(LIMIT) == 1
        assert list(view.map(abs, [-1, -2])) == [1, 2]
        assert executor.queue_pool.results() == {}
        keyed = view.options(key="kept").submit(abs, -3)
        assert keyed.result(LIMIT) == 3
        assert executor.queue_pool.results() == {"kept": 3}
        with pytest.raises(TypeError, match="did you mean 'timeout'"):
            executor.options(timout=3)  # type: ignore[call-arg]


# ---------------------------------------------------------------------------------------------------- the pool's policy


def test_the_pools_policy(client: Client, new_client: Callable[..., Client], cluster: Any) -> None:
    """Compared when a pool is opened again, said in words, and known to whoever attaches."""
    policy = RetryPolicy(2, backoff=0.0, retry_on=(LookupError,))
    equal = RetryPolicy(max_attempts=2, backoff=0, retry_on=(LookupError,))
    with QueuePool(client, name="with-policy", retry=policy) as pool, ConsumerPool(client, pool, retries=5):
        QueuePool(client, name="with-policy", retry=equal)
        with pytest.raises(PoolExists, match=r"retry is .RetryPolicy\(max_attempts=2.*LookupError.*not None"):
            QueuePool(client, name="with-policy")
        other = QueuePool.attach(new_client(cluster), "with-policy")
        for each in (pool, other):
            future = each.submit({}.__getitem__, "no")
            assert isinstance(future.exception(LIMIT), KeyError)
            assert future.attempts == 2
        assert other.options(retry=RetryPolicy(3, backoff=0)).submit({}.__getitem__, 1).exception(LIMIT) is not None


def test_pickles_are_not_compared() -> None:
    """Equal policies may have different ones: options with an underscore are only carried."""
    ours, theirs = ({**pool_options({"retry": RetryPolicy(2)}), "_control": data} for data in (b"one", b"other"))
    assert differences(ours, theirs) == {}
    assert list(differences(ours, pool_options({}))) == ["retry"]


@pytest.mark.parametrize(("options", "text"), [({"retry": 3}, "RetryPolicy"), ({"retries": 3}, "did you mean 'retry'")])
def test_bad_policies(client: Client, options: dict[str, Any], text: str) -> None:
    """Before anything is opened."""
    with pytest.raises(TypeError, match=text):
        QueuePool(client, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"retries": -1}, ValueError),
        ({"retries": True}, TypeError),
        ({"retries": 1.5}, TypeError),
        ({"retries": 250}, ValueError),
        ({"tags": "gpu"}, TypeError),
        ({"tags": [1]}, TypeError),
    ],
)
def test_bad_options_of_consumers(client: Client, pool: QueuePool, options: dict[str, Any], error: Any) -> None:
    """At the constructor."""
    with pytest.raises(error, match=next(iter(options)).rstrip("s")):
        ConsumerPool(client, pool, **options)
