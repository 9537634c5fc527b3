"""Dead letters: messages that failed for good, with why, until somebody requeues, purges or replaces them.

A letter keeps what is needed to run the message again: the body that the consumer sent along or that was the message's
own, which pins no block; without one its batch stays in the queue for it. The exception and its traceback count in the
same limit as kept results. Beyond it the oldest are dropped, and only a short text stays to say what happened.

Not here: whether a message is dead. The ledger knows (FAILED); this remembers the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

from daskqueue_core.batch import Batch, Run
from daskqueue_core.outcomes import End, Outcome

__all__ = ["DeadLetter", "DeadLetters", "Letter", "LetterRow"]

SHORT_TEXT: Final = 500


class DeadLetter(NamedTuple):
    """What an operator sees of a dead letter."""

    seq: int
    client: int  # with `number` its name, unless it has a key; 0 for what nobody waited for, which is named by `seq`
    number: int
    key: str | None
    text: str  # what went wrong, for people
    blob: bytes  # exception and traceback, pickled by the consumer; empty if there was no room
    attempts: int
    crashes: int
    reason: str
    owner: str  # who held it last
    put_at: int  # nanoseconds of the queue's clock
    failed_at: int
    end: int  # End.RUN: it failed; End.CRASHED: its owner was lost


LetterRow = tuple[DeadLetter, Batch, "bytes | None", int]
"""Card, template, body, life."""


class Letter:
    """A dead letter, with what is needed to run it again."""

    __slots__ = ("body", "card", "life", "template")

    def __init__(self, card: DeadLetter, template: Batch, body: bytes | None, life: int) -> None:
        self.card = card
        self.template = template
        self.body = body  # None: its batch stays for it
        self.life = life

    @property
    def name(self) -> str | tuple[int, int]:
        """The task's."""
        card = self.card
        return card.key if card.key is not None else (card.client, card.number)

    def outcome(self) -> Outcome:
        """How it ended, as a batch of one that is numbered 0."""
        card = self.card
        errors = ((0, card.blob, card.text),) if card.end == End.RUN else ()
        attempts = b"" if card.attempts == 1 else bytes([min(card.attempts, 255)])
        return Outcome(0, 0, 1, (), b"", errors, card.end, attempts, self.life)


class DeadLetters:
    """All of a queue's, by message. Invariant: `nbytes` is what their exceptions take."""

    def __init__(self) -> None:
        self.nbytes = 0
        """Of exceptions."""
        self._letters: dict[int, Letter] = {}
        self._with_blob: dict[int, None] = {}  # in the order they failed
        self._order: list[int] | None = None  # their numbers, ascending; None: to be sorted again

    def __len__(self) -> int:
        return len(self._letters)

    def add(self, letter: Letter) -> None:
        """A message failed for good."""
        seq, blob = letter.card.seq, letter.card.blob
        self._letters[seq] = letter
        self._order = None
        if blob:
            self._with_blob[seq] = None
            self.nbytes += len(blob)

    def get(self, seq: int) -> Letter | None:
        """The letter of a message, if it is dead."""
        return self._letters.get(seq)

    def within(self, runs: Sequence[Run]) -> list[int]:
        """The dead letters among these messages."""
        if not self._letters:
            return []
        return [seq for start, stop in runs for seq in range(start, stop) if seq in self._letters]

    def pop(self, seq: int) -> Letter:
        """It is dead no more, or gone."""
        letter = self._letters.pop(seq)
        self._order = None
        if self._with_blob.pop(seq, 0) is None:
            self.nbytes -= len(letter.card.blob)
        return letter

    def shrink(self, nbytes: int) -> None:
        """Drop the oldest exceptions until so many bytes are free, or all are gone."""
        while nbytes > 0 and self._with_blob:
            seq = next(iter(self._with_blob))
            del self._with_blob[seq]
            letter = self._letters[seq]
            size = len(letter.card.blob)
            letter.card = letter.card._replace(blob=b"", text=letter.card.text[:SHORT_TEXT])
            self.nbytes -= size
            nbytes -= size

    def read(self, after: int, limit: int | None) -> list[DeadLetter]:
        """At most `limit` in the order of their numbers, from number `after` on."""
        if self._order is None:
            self._order = sorted(self._letters)
        at = bisect_left(self._order, after)
        end = len(self._order) if limit is None else at + max(limit, 0)
        return [self._letters[seq].card for seq in self._order[at:end]]

    def rows(self) -> list[LetterRow]:
        """All, in the order they failed: to be added in that order elsewhere."""
        return [(each.card, each.template, each.body, each.life) for each in self._letters.values()]

    def validate(self) -> None:
        """AssertionError if an invariant is broken."""
        assert self.nbytes == sum(len(letter.card.blob) for letter in self._letters.values())
        assert self._with_blob.keys() == {seq for seq, letter in self._letters.items() if letter.card.blob}

    def clear(self) -> None:
        """Let go of all."""
        self._letters.clear()
        self._with_blob.clear()
        self._order = None
        self.nbytes = 0
