"""Dead letters, and the room of their exceptions."""

from daskqueue_core.batch import Batch
from daskqueue_core.dead_letters import SHORT_TEXT, DeadLetter, DeadLetters, Letter
from daskqueue_core.outcomes import End, Outcome


def letter(seq: int, blob: bytes = b"", text: str = "Boom", key: str | None = None, **options: int) -> Letter:
    """A message that failed."""
    card = DeadLetter(seq, 5, 100 + seq, key, text, blob, 1, 0, "failed", "w1", 10, 20, End.RUN)._replace(**options)
    return Letter(card, Batch(1, b""), b"body", 3)


def test_in_the_order_of_numbers() -> None:
    """However they failed, and from a number on."""
    letters = DeadLetters()
    for seq in (5, 1, 9, 3):
        letters.add(letter(seq))
    assert [card.seq for card in letters.read(0, None)] == [1, 3, 5, 9]
    assert [card.seq for card in letters.read(3, 2)] == [3, 5]
    assert [card.seq for card in letters.read(10, None)] == []
    assert letters.pop(3).card.seq == 3
    assert [card.seq for card in letters.read(3, -1)] == []
    assert [card.seq for card in letters.read(2, 9)] == [5, 9]
    assert (len(letters), letters.get(3), letters.within([(0, 6), (9, 10)])) == (3, None, [1, 5, 9])


def test_the_oldest_exceptions_go_first() -> None:
    """Until there is room; a short text stays, and what has none is not asked."""
    letters = DeadLetters()
    for seq, nbytes in ((7, 100), (1, 0), (3, 200), (2, 50)):
        letters.add(letter(seq, b"x" * nbytes, "t" * 1_000))
    assert letters.nbytes == 350
    letters.shrink(101)
    assert [(card.seq, len(card.blob), len(card.text)) for card in letters.read(0, None)] == [
        (1, 0, 1_000),
        (2, 50, 1_000),
        (3, 0, SHORT_TEXT),
        (7, 0, SHORT_TEXT),
    ]
    assert letters.nbytes == 50
    letters.validate()
    letters.shrink(10**6)
    assert letters.nbytes == 0
    letters.shrink(10**6)


def test_an_exception_that_was_dropped_is_not_counted_twice() -> None:
    """Its letter leaves without bytes."""
    letters = DeadLetters()
    for seq in range(3):
        letters.add(letter(seq, b"x" * 10))
    letters.shrink(5)
    letters.pop(0)
    letters.pop(1)
    assert letters.nbytes == 10
    letters.clear()
    assert (letters.nbytes, len(letters), letters.read(0, None)) == (0, 0, [])


def test_the_outcome_of_a_letter() -> None:
    """For who asks late: the error, or that its owner was lost."""
    assert letter(1, b"E").outcome() == Outcome(0, 0, 1, errors=((0, b"E", "Boom"),), life=3)
    crashed = letter(1, end=End.CRASHED, attempts=300).outcome()
    assert (crashed.end, crashed.errors, crashed.attempts) == (End.CRASHED, (), b"\xff")
