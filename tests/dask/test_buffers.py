"""daskqueue.wire.buffers: large buffers beside their pickle."""

import pickle
import struct
from array import array
from typing import Any

import pytest

from daskqueue.wire.buffers import Spread, pack, spread, unpack, whole
from daskqueue.wire.pickles import APART_BYTES

np: Any = pytest.importorskip("numpy")


class Held:
    """Holds something `__main__`-like that only cloudpickle can write, and an array."""

    def __init__(self, data: Any) -> None:
        self.data, self.fn = data, lambda x: x + 1


def test_plain_data_is_a_plain_pickle() -> None:
    """Nothing changes for what has no buffers, or only small ones."""
    assert pack([(1, "a"), b"x" * 10_000]) == pickle.dumps([(1, "a"), b"x" * 10_000], 5)
    assert pack(np.arange(10))[0] == 0x80


@pytest.mark.parametrize("shape", [(APART_BYTES,), (300, 200), (2, 3, 40_000)])
@pytest.mark.parametrize("dtype", ["u1", "f8", "M8[ns]"])
def test_arrays_come_back(shape: tuple[int, ...], dtype: str) -> None:
    """Same values, type, shape, and writable."""
    value = np.arange(int(np.prod(shape))).astype("i8").astype(dtype).reshape(shape)
    data = pack([(value, 1), (value.T, 2)])
    (back, one), (turned, two) = unpack(data)
    assert (back == value).all()
    assert back.dtype == value.dtype
    assert back.flags.writeable
    assert (one, two) == (1, 2)
    assert (turned == value.T).all()
    assert turned.flags.f_contiguous == value.T.flags.f_contiguous


def test_the_pickle_itself_stays_small() -> None:
    """The contents are written once, and not by pickle."""
    value = np.ones(1_000_000, "u1")
    assert len(pack([value])) < 1_000_400
    assert struct.unpack_from("<Q", pack([value]), 8)[0] < 300


def test_read_only_stays_read_only() -> None:
    """What nobody could write to before, nobody can afterwards."""
    value = np.frombuffer(bytes(50_000), "u1")
    assert not unpack(pack(value)).flags.writeable


def test_a_view_keeps_nothing_else_alive() -> None:
    """An array of one task does not pin the block it came in."""
    block = bytearray(pack([np.ones(50_000, "u1"), np.ones(50_000, "u1")]))
    first, _ = unpack(memoryview(block))
    block[:] = bytes(len(block))
    assert first.all()


def test_not_contiguous_is_copied() -> None:
    """A slice with steps has no buffer to hand out."""
    value = np.arange(100_000)[::3]
    assert (unpack(pack(value)) == value).all()


def test_cloudpickle_puts_buffers_apart_too() -> None:
    """A second pass, by value, does not write them twice."""
    held = Held(np.ones(100_000, "u1"))
    data = pack(held)
    assert len(data) < 110_000
    back = unpack(data)
    assert back.data.all()
    assert back.fn(1) == 2


def test_others_with_buffers() -> None:
    """Whatever gives pickle a buffer: not only arrays of NumPy."""
    assert unpack(pack(pickle.PickleBuffer(b"x" * 20_000))) == b"x" * 20_000
    assert unpack(pack(bytearray(50_000))) == bytearray(50_000)
    assert unpack(pack(array("Q", range(9_000)))) == array("Q", range(9_000))


@pytest.mark.parametrize("kind", [list, tuple])
def test_large_bytes_lie_beside(kind: type) -> None:
    """Among others of any size; they come back as what they were, and hold on to nothing."""
    value = kind([b"a" * 50_000, 1, b"small", bytearray(30_000), b"b" * APART_BYTES])
    data = bytearray(pack(value))
    assert struct.unpack_from("<Q", data, 8)[0] < 31_000
    back = unpack(memoryview(data))
    assert back == value
    assert list(map(type, back)) == list(map(type, value))
    data[:] = bytes(len(data))
    assert back == value


def test_a_list_of_large_bytes_needs_no_pickle() -> None:
    """It can be read as views, which hold on to the batch until each is made whole."""
    value = [b"a" * 50_000, b"b" * APART_BYTES]
    data = pack(value)
    assert len(data) == 8 + 2 * 8 + 50_000 + APART_BYTES
    views = unpack(data, views=True)
    assert [type(each) for each in views] == [memoryview] * 2
    assert all(each.obj is data for each in views)
    assert list(map(whole, views)) == unpack(data) == value


@pytest.mark.parametrize("value", [[b"a" * 50_000, b"small"], [np.ones(50_000, "u1")], range(5), [None]])
def test_anything_else_is_whole(value: Any) -> None:
    """Also where views are welcome."""
    back = unpack(pack(value), views=True)
    assert all(whole(each) is each for each in back)
    assert [bytes(each) for each in back if each is not None] == [bytes(each) for each in value if each is not None]


def test_large_bytes_are_spread() -> None:
    """What is sent is what was given, not a copy of it."""
    for value in ([b"a" * 100_000, b"b" * 70_000], (b"a" * 100_000, 1)):
        sent = spread(value)
        assert isinstance(sent, Spread)
        assert any(piece is value[0] for piece in sent.pieces)
        assert len(sent) == len(pack(value))
        assert bytes(sent) == pack(value)


@pytest.mark.parametrize(
    "value",
    [
        [np.ones(100_000, "u1"), b"a" * 100_000],  # an array may be changed before it is sent
        [bytearray(100_000)],
        [b"a" * 20_000, b"b" * 20_000],  # small ones are joined by Dask if not here
        [1, 2],
    ],
)
def test_what_may_change_or_is_small_is_joined(value: Any) -> None:
    """It is copied where it is given."""
    assert spread(value) == pack(value)


class Slice:
    """Gives pickle a buffer that is a part of its bytes."""

    def __reduce__(self) -> tuple[object, ...]:
        return bytes, (pickle.PickleBuffer(memoryview(b"a" + b"b" * 100_000)[1:]),)


def test_a_part_of_bytes_is_no_more_than_that() -> None:
    """What lies around it does not travel."""
    assert unpack(bytes(spread([Slice()]))) == [b"b" * 100_000]


def test_the_same_bytes_twice_travel_once() -> None:
    """As pickle does it."""
    data = pack([b"x" * 50_000] * 10)
    assert len(data) < 51_000
    assert unpack(data) == [b"x" * 50_000] * 10


def test_classes_derived_from_bytes_stay() -> None:
    """And what holds the bytes need not be a plain list."""

    class Name(bytes):
        pass

    class Names(list):  # type: ignore[type-arg]
        pass

    assert type(unpack(pack([Name(50_000)]))[0]).__name__ == "Name"
    assert type(unpack(pack(Names([bytes(50_000)])))).__name__ == "Names"


@pytest.mark.parametrize("cut", [1, 40, 20_000])
def test_damage_is_noticed(cut: int) -> None:
    """Bytes that are missing do not give a shorter array."""
    for value in ([np.ones(50_000, "u1")], [bytes(50_000)]):
        with pytest.raises((ValueError, struct.error)):
            unpack(pack(value)[:-cut])


def test_a_damaged_count_is_noticed() -> None:
    """A count beyond the data is an error, not a wild read."""
    for value in ([np.ones(50_000, "u1")], [bytes(50_000)]):
        data = bytearray(pack(value))
        data[4:8] = b"\xff\xff\xff\x7f"
        with pytest.raises((ValueError, struct.error, MemoryError)):
            unpack(bytes(data))
