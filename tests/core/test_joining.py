"""When a join over several queues is done."""

from daskqueue_core.joining import JoinRounds, JoinState


def state(uuid: str = "a", puts: int = 5, finished: int = 5, *, idle: bool = True) -> JoinState:
    """A queue with nothing to do."""
    return JoinState(uuid, puts, finished, idle)


def test_two_rounds_agree() -> None:
    """One is not enough, and the second only confirms: it does not wait."""
    rounds = JoinRounds()
    assert rounds.patient
    assert not rounds.done([state(), state("b")])
    assert not rounds.patient
    assert rounds.done([state(), state("b")])


def test_something_was_put_in_between() -> None:
    """And done already: idle again, but not the same, so a third round has to agree with the second."""
    rounds = JoinRounds()
    assert not rounds.done([state(puts=5), state("b")])
    assert not rounds.done([state(puts=6, finished=6), state("b")])
    assert rounds.done([state(puts=6, finished=6), state("b")])


def test_one_is_not_idle() -> None:
    """What was found before counts for nothing, and the next round waits again."""
    rounds = JoinRounds()
    assert not rounds.done([state(), state("b")])
    assert not rounds.done([state(), state("b", idle=False)])
    assert rounds.patient
    assert not rounds.done([state(), state("b")])
    assert rounds.done([state(), state("b")])


def test_a_new_life() -> None:
    """As many puts and ends in another life of the queue are not the same."""
    rounds = JoinRounds()
    assert not rounds.done([state("a")])
    assert not rounds.done([state("c")])
    assert rounds.done([state("c")])


def test_it_never_agrees_with_what_was_not_idle() -> None:
    """Two equal rounds of a busy queue are no join."""
    rounds = JoinRounds()
    assert not rounds.done([state(finished=4, idle=False)])
    assert not rounds.done([state(finished=4, idle=False)])
