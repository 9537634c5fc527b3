"""daskqueue.wire.calls: arguments and results on the wire."""

import pickle
import threading
from typing import Any

import pytest

from daskqueue.wire import calls
from daskqueue.wire.calls import (
    Unloadable,
    decode_values,
    encode_args,
    encode_block,
    encode_item,
    encode_items,
    encode_lengths,
    encode_values,
    load_elements,
)
from daskqueue.wire.errors import (
    ArgumentLoadError,
    ResultLoadError,
    UnpicklableArgument,
    UnpicklableResult,
    decode_error,
)
from daskqueue.wire.functions import Style


def function(*args: Any, **kwargs: Any) -> None:
    """What is called."""


def boom(*_: object) -> None:
    """Unpickling may raise anything."""
    raise SystemExit(3)


class ExitsOnLoad:
    """Pickles well, does not unpickle."""

    def __reduce__(self) -> tuple[object, ...]:
        return boom, (1,)


class ExitsOnDump:
    """Does not pickle, and rudely."""

    def __reduce__(self) -> str:
        raise KeyboardInterrupt


LOCK = threading.Lock()


def test_block_round_trip() -> None:
    """A block gives back any range of its elements."""
    elements = [(i, str(i)) for i in range(100)]
    body = encode_block(elements, function)
    assert load_elements(memoryview(body), None, 0, 100) == elements
    assert load_elements(body, None, 40, 42) == elements[40:42]
    assert load_elements(body, None, 7, 7) == []


def test_singles_round_trip() -> None:
    """Singles give back any range, reading no other."""
    bodies = [encode_args((i,), None, function) for i in range(10)]
    bodies[0] = b"not a pickle"
    body, lengths = b"".join(bodies), encode_lengths(bodies)
    assert load_elements(memoryview(body), memoryview(lengths), 3, 6) == [(3,), (4,), (5,)]
    assert load_elements(body, lengths, 9, 10) == [(9,)]
    assert load_elements(body, lengths, 4, 4) == []


def test_keywords() -> None:
    """With keywords an element is (args, kwargs)."""
    assert pickle.loads(encode_args((1,), {"k": 2}, function)) == ((1,), {"k": 2})
    assert pickle.loads(encode_args((1,), {}, function)) == (1,)
    elements = [((1,), {"k": 2}), ((), {})]
    assert load_elements(encode_block(elements, function, Style.KWARGS), None, 0, 2) == elements


@pytest.mark.parametrize("item", [0, "", None, False, (), [], (1, 2)])
def test_items_are_one_argument(item: object) -> None:
    """Falsy items and tuples are items like any other."""
    body = encode_item(item)
    assert load_elements(body, encode_lengths([body]), 0, 1) == [(item,)]
    assert load_elements(encode_items(iter([item, item])), None, 0, 2) == [(item,), (item,)]


@pytest.mark.parametrize(
    ("args", "kwargs", "argument"), [((1, LOCK), {}, 1), ((1,), {"good": 2, "bad": LOCK}, "bad"), (((LOCK,),), {}, 0)]
)
def test_unpicklable_argument_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], argument: int | str) -> None:
    """The error says which argument, its type, of which function, and chains the reason."""
    with pytest.raises(UnpicklableArgument, match=rf"argument {argument!r} \(of type .*'function' cannot") as caught:
        encode_args(args, kwargs, function)
    assert isinstance(caught.value, TypeError)
    assert caught.value.argument == argument
    assert "lock" in str(caught.value.__cause__)


def test_unpicklable_argument_in_a_block_is_named() -> None:
    """So does that of a block, with the call it is of; items likewise."""
    with pytest.raises(UnpicklableArgument, match=r"argument 1 \(of type _thread.lock\) of call 2") as caught:
        encode_block([(1,), (2, 2), (3, LOCK)], function)
    assert (caught.value.index, caught.value.argument) == (2, 1)
    with pytest.raises(UnpicklableArgument, match=r"argument 'k'.*of call 1"):
        encode_block([((), {}), ((), {"k": LOCK})], function, Style.KWARGS)
    with pytest.raises(UnpicklableArgument, match=r"item 1 \(of type _thread.lock\)"):
        encode_items([1, LOCK])
    with pytest.raises(UnpicklableArgument, match="an item"):
        encode_item(LOCK)


def test_closures_as_arguments() -> None:
    """What only cloudpickle can write travels too."""
    ((fn,),) = load_elements(encode_block([(lambda: 5,)], function), None, 0, 1)
    assert fn() == 5


def test_damaged_single_fails_alone() -> None:
    """A single that does not unpickle is an Unloadable; its neighbours are read."""
    bodies = [encode_args((1,), None, function), b"garbage", encode_args((ExitsOnLoad(),), None, function), b""]
    first, second, third, fourth = load_elements(b"".join(bodies), encode_lengths(bodies), 0, 4)
    assert first == (1,)
    for marker in (second, third, fourth):
        assert isinstance(marker, Unloadable)
        with pytest.raises(ArgumentLoadError, match="could not be unpickled"):
            function(*marker)


def test_damaged_block_fails_its_range() -> None:
    """A block that does not unpickle, or is too short, fails all that is asked of it, and raises nothing."""
    for body in (b"garbage", encode_block([(ExitsOnLoad(),)] * 5, function), encode_block([(1,)], function)):
        elements = load_elements(body, None, 2, 5)
        assert len(elements) == 3
        assert all(isinstance(element, Unloadable) for element in elements)


@pytest.mark.parametrize("lengths", [b"abc", encode_lengths([b"1"]), encode_lengths([b"1"] * 5)])
def test_damaged_lengths_fail_their_range(lengths: bytes) -> None:
    """A lengths column that does not fit reads nothing wrong."""
    elements = load_elements(b"1234", lengths, 1, 3)
    assert [type(element) for element in elements] == [Unloadable, Unloadable]


def test_values_round_trip() -> None:
    """Results are one pickle; a list of a million needs no look at each."""
    blob, failures = encode_values([1, None, "a"])
    assert (decode_values(memoryview(blob)), failures) == ([1, None, "a"], [])
    blob, failures = encode_values([lambda: 5])
    assert (decode_values(blob)[0](), failures) == (5, [])


@pytest.mark.parametrize("culprit", [LOCK, ExitsOnLoad(), ExitsOnDump(), (i for i in ())])
def test_result_that_cannot_travel_fails_alone(culprit: object) -> None:
    """Unpicklable, or picklable and not readable: only that element fails, with an error that names its type."""
    blob, failures = encode_values([1, culprit, 3])
    assert decode_values(blob) == [1, None, 3]
    (failure,) = failures
    error = decode_error(failure.blob, failure.text)
    assert failure.position == 1
    assert isinstance(error, UnpicklableResult)
    assert type(culprit).__qualname__ in str(error)


def test_values_that_end_their_reader() -> None:
    """What raises SystemExit only in the client fails the tasks of its run there, and does not end the client."""
    with pytest.raises(ResultLoadError, match="SystemExit"):
        decode_values(pickle.dumps([ExitsOnLoad()], 5))


def test_results_that_travel_only_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost silently when the whole does not pickle although its parts do."""

    def dumps(values: list[Any]) -> bytes:
        if values == [1, 2]:
            raise RecursionError("too deep together")
        return pickle.dumps(values)

    monkeypatch.setattr(calls, "pack", dumps)
    blob, failures = encode_values([1, 2])
    assert decode_values(blob) == [None, None]
    assert [failure.position for failure in failures] == [0, 1]


def test_mend_gets_one_chance() -> None:
    """What the runner can mend (coroutines to await) is mended before anything fails."""
    values: list[Any] = [1, LOCK]

    def mend() -> None:
        values[1] = 2

    blob, failures = encode_values(values, mend=mend)
    assert (decode_values(blob), failures) == ([1, 2], [])


def test_unreadable_results_raise_in_the_client() -> None:
    """The client says what it could not read."""
    with pytest.raises(ResultLoadError, match="could not be unpickled here"):
        decode_values(b"garbage")
