"""Plain values to bytes and back."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskqueue_storage import plain

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@given(values)
@settings(max_examples=200, deadline=None)
def test_round_trip(value: Any) -> None:
    """What is written is read, types included."""
    again = plain.decode(plain.encode(value))
    assert again == value
    assert repr(again) == repr(value)


@given(st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_other_bytes_are_a_value_error(data: bytes) -> None:
    """Never another exception, whatever the bytes are."""
    try:
        plain.decode(data)
    except ValueError:
        pass


def test_what_does_not_fit() -> None:
    """A cut value, bytes behind one, too many levels, and what is not plain."""
    whole = plain.encode((1, b"abc"))
    for data in (whole[:-1], whole + b"N", b"t\x01\0\0\0" * 40 + b"N", b""):
        with pytest.raises(ValueError, match=r"plain value|bytes where"):
            plain.decode(data)
    with pytest.raises(TypeError, match="float is not a plain value"):
        plain.encode(1.5)
