"""Puts in number order, each once."""

import pytest

from daskqueue_core import admission
from daskqueue_core.admission import Admission, Duplicate, Early, UnknownProducer


def admitted(count: int, producer: int = 7) -> Admission:
    """An admission that has seen `count` puts of ten messages."""
    table = Admission()
    for number in range(count):
        assert table.refusal(producer, number) is None
        table.admit(producer, number, 10 * number, 10)
    return table


def test_next_early_and_repeated() -> None:
    """The next number is admitted, a later one waits, an earlier one gets its first answer."""
    table = admitted(3)
    assert table.refusal(7, 3) is None
    assert isinstance(table.refusal(7, 4), Early)
    assert table.refusal(7, 1) == Duplicate(10, 10)


def test_a_number_not_applied_stays_free() -> None:
    """Asking changes nothing: a put that could not be recorded is admitted later."""
    table = admitted(3)
    assert table.refusal(7, 3) is None
    assert table.refusal(7, 3) is None


def test_remembers_64_puts() -> None:
    """The last 64 repeats are answered, older ones are unknown rather than put again."""
    table = admitted(100)
    assert table.refusal(7, 36) == Duplicate(360, 10)
    assert isinstance(table.refusal(7, 35), UnknownProducer)


def test_unknown_producer() -> None:
    """Somebody new begins at 0; at any other number its past is lost."""
    assert Admission().refusal(1, 0) is None
    assert isinstance(Admission().refusal(1, 1), UnknownProducer)


def test_forgets_who_was_heard_of_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number of producers, by recent use."""
    monkeypatch.setattr(admission, "REMEMBERED_PRODUCERS", 2)
    table = admitted(1, producer=1)
    table.admit(2, 0, 10, 1)
    table.admit(1, 1, 11, 1)
    table.admit(3, 0, 12, 1)
    assert isinstance(table.refusal(2, 1), UnknownProducer)
    assert table.refusal(1, 2) is None


def test_replay_with_a_gap() -> None:
    """After lost records nothing is answered from the wrong put."""
    table = admitted(3)
    table.admit(7, 9, 500, 1)
    assert table.refusal(7, 9) == Duplicate(500, 1)
    assert isinstance(table.refusal(7, 8), UnknownProducer)


def test_negative_number() -> None:
    """A mistake of the caller, named."""
    with pytest.raises(ValueError, match="producer 0xff: number=-1"):
        Admission().refusal(255, -1)
