"""Keys and messages, both ways."""

from daskqueue_core.keys import Keys


def named(*pairs: tuple[int, str]) -> Keys:
    """Keys with these names."""
    keys = Keys()
    for seq, key in pairs:
        keys.name(seq, key)
    keys.validate()
    return keys


def test_a_key_names_one_message() -> None:
    """The later one takes it over, and the older has none any more."""
    keys = named((1, "a"), (2, "b"), (9, "a"))
    assert keys.seq_of == {"a": 9, "b": 2}
    assert keys.key_of == {2: "b", 9: "a"}


def test_drop() -> None:
    """A few messages of many keys, many messages of few keys, messages without one."""
    keys = named(*[(seq, str(seq)) for seq in range(0, 20, 2)])
    keys.drop([(3, 5), (7, 8)])
    keys.validate()
    assert 4 not in keys.key_of
    assert len(keys.key_of) == 9
    keys.drop([(0, 3), (6, 1_000_000)])
    keys.validate()
    assert keys.key_of == {}
