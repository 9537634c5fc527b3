"""daskqueue.wire.functions: a function pickled once, known by its hash, loaded once."""

import functools
import math
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from daskqueue.wire import functions
from daskqueue.wire.errors import FunctionLoadError, UnpicklableFunction
from daskqueue.wire.functions import ITEM, Style, encode_function, function_name, load_call, read_header


def module_function(x: int) -> int:
    """Found by name."""
    return x + 1


async def async_function() -> None:
    """Found by name, async."""


class Accumulator:
    """A callable with state."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, x: int) -> int:
        self.total += x
        return self.total

    def method(self) -> int:
        """Bound, it carries the state along."""
        return self.total


class AsyncCallable:
    """An object whose call is a coroutine."""

    async def __call__(self) -> None:
        pass


def in_main(source: str) -> dict[str, Any]:
    """Run source as a script would: what it defines belongs to `__main__`."""
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(source, namespace)
    return namespace


def call_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a worker gets it."""
    return load_call(encode_function(fn).shared).fn


@pytest.fixture
def pickled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was pickled, in order."""
    seen: list[object] = []

    def spy(obj: object) -> bytes:
        seen.append(obj)
        return dumps(obj)

    dumps = functions.dumps
    monkeypatch.setattr(functions, "dumps", spy)
    monkeypatch.setattr(functions, "_by_name", {})
    monkeypatch.setattr(functions, "_by_state", {})
    return seen


@pytest.mark.parametrize("fn", [module_function, len, math.sqrt, int, functools.partial(module_function, 1), lambda: 1])
def test_round_trip_and_header(fn: Callable[..., Any]) -> None:
    """A worker gets an equal function, and reads style and name without unpickling."""
    for style in (Style.ARGS, Style.KWARGS):
        shared, digest = encode_function(fn, style)
        call = load_call(shared)
        header = read_header(memoryview(shared))
        assert (call.style, call.hash, call.name, call.is_async) == (style, digest, function_name(fn), False)
        assert (header.style, header.is_async, header.hash, header.name) == (style, False, digest, function_name(fn))
        assert load_call(memoryview(shared)).fn is call.fn


@pytest.mark.parametrize(
    ("fn", "is_async"),
    [
        (async_function, True),
        (functools.partial(async_function), True),
        (AsyncCallable(), True),
        (AsyncCallable, False),
        (module_function, False),
    ],
)
def test_async_is_in_the_header(fn: Callable[..., Any], is_async: bool) -> None:
    """The runner is chosen from the header alone."""
    assert read_header(encode_function(fn).shared).is_async is is_async


def test_functions_found_by_name_are_pickled_once(pickled: list[object]) -> None:
    """Module-level functions, classes and builtins are cached by identity, for both styles."""
    for fn in (module_function, Accumulator, len):
        for _ in range(3):
            assert encode_function(fn).hash == encode_function(fn, Style.KWARGS).hash
    assert pickled == [module_function, Accumulator, len]


def test_immutable_closures_are_pickled_once_per_value(pickled: list[object]) -> None:
    """A lambda made anew in a loop hits the cache if it captures the same; 1, 1.0 and True are not the same."""

    def make(value: object) -> Callable[[], object]:
        return lambda: value

    for _ in range(3):
        for value in (1, 1.0, True, "1", 0.0, -0.0, None):
            assert repr(call_of(make(value))()) == repr(value)
    assert len(pickled) == 7


def test_defaults_count_as_captured(pickled: list[object]) -> None:
    """`lambda i=i: i` differs by its default."""
    assert [call_of(lambda i=i: i)() for i in (1, 2, 1, 2)] == [1, 2, 1, 2]
    assert len(pickled) == 2


@pytest.mark.usefixtures("pickled")
def test_mutation_between_calls_is_seen() -> None:
    """A closure over a list, a bound method, an object and a partial are pickled as they are at each call."""
    values = [1]
    counter = Accumulator()
    for fn in (lambda: sum(values), counter.method, functools.partial(counter, 0), counter):
        args = (0,) if fn is counter else ()
        before = call_of(fn)(*args)
        values.append(5)
        counter.total += 5
        assert call_of(fn)(*args) == before + 5


@pytest.mark.usefixtures("pickled")
def test_nonlocal_rebound_between_calls_is_seen() -> None:
    """The same function object whose captured variable now holds something else."""
    value = 1

    def fn() -> int:
        return value

    assert call_of(fn)() == 1
    value = 2
    assert call_of(fn)() == 2


def test_globals_of_main_are_watched(pickled: list[object]) -> None:
    """A notebook's function is pickled with its globals: a changed one is seen, through helpers too."""
    space = in_main("N = 1\ndef helper(): return N\ndef fn(): return helper()\n")
    assert [call_of(space["fn"])() for _ in range(3)] == [1, 1, 1]
    assert len(pickled) == 1
    space["N"] = 2
    assert call_of(space["fn"])() == 2
    exec("def helper(): return 7\n", space)
    assert call_of(space["fn"])() == 7
    space = in_main("L = [1]\ndef fn(): return sum(L)\n")
    assert call_of(space["fn"])() == 1
    space["L"].append(1)
    assert call_of(space["fn"])() == 2


@pytest.mark.usefixtures("pickled")
def test_attributes_and_keyword_defaults_are_seen() -> None:
    """State that a function keeps on itself, and keyword defaults, which may be lists."""
    space = in_main("def counted(): return counted.count\ncounted.count = 1\n")
    assert call_of(space["counted"])() == 1
    space["counted"].count = 2
    assert call_of(space["counted"])() == 2
    space = in_main("kept = [1]\ndef fn(*, values=kept): return sum(values)\n")
    assert call_of(space["fn"])() == 1
    space["kept"].append(1)
    assert call_of(space["fn"])() == 2


@pytest.mark.usefixtures("pickled")
def test_code_replaced_in_place_is_seen() -> None:
    """Autoreload swaps `__code__` of a living function."""
    space = in_main("def fn(): return 1\ndef other(): return 2\n")
    assert call_of(space["fn"])() == 1
    space["fn"].__code__ = space["other"].__code__
    assert call_of(space["fn"])() == 2


def test_caches_are_bounded(pickled: list[object]) -> None:
    """Ten thousand different closures do not stay for ever."""

    def make(value: int) -> Callable[[], int]:
        return lambda: value

    for value in range(functions.CACHED_MAX + 10):
        encode_function(make(value))
    assert len(pickled) == functions.CACHED_MAX + 10
    assert len(functions._by_state) == functions.CACHED_MAX


def test_loaded_functions_are_bounded() -> None:
    """A worker keeps the functions used last."""
    first = encode_function(module_function).shared
    loaded = load_call(first)
    for value in range(functions.CACHED_MAX + 10):
        load_call(encode_function(functools.partial(module_function, value)).shared)
        assert load_call(first) is loaded
    assert len(functions._loaded) == functions.CACHED_MAX


def test_unpicklable_function_names_it() -> None:
    """A closure over a lock is refused where the caller stands."""
    lock = threading.Lock()

    def guarded() -> None:
        with lock:
            pass

    with pytest.raises(UnpicklableFunction, match="guarded") as caught:
        encode_function(guarded)
    assert isinstance(caught.value, TypeError)
    assert caught.value.__cause__ is not None


def test_large_function_warns_once() -> None:
    """1 MiB travels with every batch, so say so, once."""
    data = bytes(2 << 20)

    def heavy() -> int:
        return len(data)

    with pytest.warns(UserWarning, match=r"heavy.* 2\.0 MiB"):
        encode_function(heavy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_function(heavy)


def exits(_: object) -> None:
    """Importing anything may do this."""
    raise SystemExit(3)


class ExitsOnLoad:
    """A function whose module leaves the process when it is imported."""

    def __reduce__(self) -> tuple[object, ...]:
        return exits, (1,)

    def __call__(self) -> None:
        pass


def test_load_failures_are_errors_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loading raises is a FunctionLoadError with its cause; once mended, it loads."""
    with pytest.raises(FunctionLoadError, match="ExitsOnLoad") as caught:
        load_call(encode_function(ExitsOnLoad()).shared)
    assert isinstance(caught.value.__cause__, SystemExit)
    shared = encode_function(module_function).shared
    functions._loaded.clear()
    with monkeypatch.context() as patch:
        patch.delattr(sys.modules[__name__], "module_function")
        with pytest.raises(FunctionLoadError, match=r"module_function.*install"):
            load_call(shared)
    assert load_call(shared).fn is module_function


def test_other_format_and_damage() -> None:
    """Another version or garbage says so instead of unpickling it."""
    shared = bytearray(encode_function(module_function).shared)
    shared[0] = 99
    with pytest.raises(FunctionLoadError, match=r"format 99.*same version"):
        read_header(shared)
    with pytest.raises(FunctionLoadError, match="damaged"):
        read_header(b"\x01")
    shared[:2] = bytes([functions.FORMAT, 0x0F])
    with pytest.raises(FunctionLoadError, match="damaged"):
        load_call(shared)


def test_item_batches_have_a_header_too() -> None:
    """A batch of items says so in the same place."""
    assert read_header(ITEM.shared)[:5] == (Style.ITEM, False, 0, bytes(16), "item")


def test_threads_that_load_at_once_share_one_object() -> None:
    """One hash, one loaded object, also under a race."""
    shared = encode_function(functools.partial(module_function, 424242)).shared
    barrier = threading.Barrier(4)
    loaded: list[object] = []

    def load() -> None:
        barrier.wait()
        loaded.append(load_call(shared).fn)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(fn) for fn in loaded}) == 1
    assert pickle.dumps(loaded[0])


def test_code_of_another_python() -> None:
    """It is not tried: it could crash the worker. What is found by name is everybody's."""
    offset = 15
    by_value = bytearray(encode_function(lambda x: x + offset).shared)
    assert read_header(by_value).python == sys.version_info.minor
    by_value[2] += 1
    with pytest.raises(FunctionLoadError, match=rf"compiled by Python 3\.{sys.version_info.minor + 1}, .* requeue it"):
        load_call(by_value)
    assert read_header(encode_function(module_function).shared).python == 0
    assert read_header(encode_function(functools.partial(module_function, 1)).shared).python == 0
    wrapped = encode_function(functools.partial(lambda x: x, 1)).shared
    assert read_header(wrapped).python == sys.version_info.minor
