"""Whether a task that failed is tried again, and after how long.

A `RetryPolicy` says what its submitter wants; `Retry` and `Reject` are what a task raises to decide for itself. The
consumer asks the policy, since it has the exception; the queue counts attempts and keeps the time. An attempt is a
failure that the function reported: a lost worker costs none.

A `Retry` is granted as long as the policy has attempts left, whatever `retry_on` and `never_on` say. It counts as one,
so a task that asks for ever ends, as with Celery's `max_retries`, and its error is then that `Retry`.

Not here: crashes (the ledger counts them against `max_crashes`), and chance: a `random` comes in as an argument.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ATTEMPTS_MAX", "LONGEST_S", "ON_REQUEST", "Reject", "Retry", "RetryPolicy"]

ATTEMPTS_MAX: Final = 250
"""A queue keeps attempts in one byte."""

LONGEST_S: Final = 100 * 365 * 86_400.0
"""No delay is longer: as nanoseconds from now it must fit 64 bits."""


class Retry(Exception):
    """A task raises it to be run again: in `delay` seconds, or None: when its policy says."""

    def __init__(self, delay: float | None = None, reason: str = "") -> None:
        self.delay = None if delay is None else _seconds("delay", delay)
        self.reason = reason
        when = "" if self.delay is None else f" in {self.delay:g} s"
        super().__init__(f"the task asked to be run again{when}{': ' if reason else ''}{reason}")

    def __reduce__(self) -> tuple[type[Retry], tuple[float | None, str]]:
        return type(self), (self.delay, self.reason)


class Reject(Exception):
    """A task raises it when no other attempt can help: straight to the dead letters."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a task that fails is run, and how long it waits in between.

    After attempt n it waits `backoff * factor ** (n - 1)` seconds, at most `max_backoff`; with `jitter` a random part
    of that, from none to all ("full jitter": Exponential Backoff And Jitter, AWS Architecture Blog, 2015: of the
    variants there it gives the least load when many fail together).
    """

    max_attempts: int = 1
    """Runs in all, the first included: 1 means no retry."""
    backoff: float = 1.0
    factor: float = 2.0
    max_backoff: float = 300.0
    jitter: bool = True
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    """Errors after which it is tried again; () means only when the task raises `Retry`."""
    never_on: tuple[type[BaseException], ...] = ()
    """Errors after which it is not, even if `retry_on` covers them."""
    max_crashes: int = 3
    """Workers that may be lost while they run this task alone."""

    def __post_init__(self) -> None:
        given = {
            "max_attempts": _whole("max_attempts", self.max_attempts),
            "backoff": _seconds("backoff", self.backoff),
            "factor": _number("factor", self.factor, least=1.0),
            "max_backoff": _seconds("max_backoff", self.max_backoff),
            "retry_on": _classes("retry_on", self.retry_on),
            "never_on": _classes("never_on", self.never_on),
            "max_crashes": _whole("max_crashes", self.max_crashes),
        }
        if not isinstance(self.jitter, bool):
            raise TypeError(f"jitter must be True or False, not {self.jitter!r}")
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Seconds to wait after `attempt` (1: the first) has failed; `random` gives numbers from 0 to 1."""
        if attempt < 1:
            raise ValueError(f"attempts count from 1, not {attempt}")
        try:
            longest = min(self.max_backoff, self.backoff * self.factor ** (attempt - 1))
        except OverflowError:
            longest = self.max_backoff if self.backoff else 0.0
        return random() * longest if self.jitter else longest

    def next_delay(self, error: BaseException, attempt: int, random: Callable[[], float]) -> float | None:
        """Seconds after which a task is tried again whose `attempt` ended with `error`; None: it is not."""
        if attempt >= self.max_attempts or isinstance(error, Reject):
            return None
        if isinstance(error, Retry):
            return self.delay(attempt, random) if error.delay is None else error.delay
        if isinstance(error, self.never_on) or not isinstance(error, self.retry_on):
            return None
        return self.delay(attempt, random)


def _whole(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if isinstance(value, bool) or not 1 <= number <= ATTEMPTS_MAX:
        raise ValueError(f"{name} must be from 1 to {ATTEMPTS_MAX}, not {value!r}")
    return number


def _seconds(name: str, value: Any) -> float:
    return _number(name, value, least=0.0, most=LONGEST_S)


def _number(name: str, value: Any, *, least: float, most: float = math.inf) -> float:
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and least <= number <= most):
        limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} must be {limits}, not {value!r}")
    return number


def _classes(name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = (value,) if isinstance(value, type) else value
    if not isinstance(classes, (tuple, list)):
        raise TypeError(f"{name} must be an exception class or a tuple of them, not {value!r}")
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"{name} must hold exception classes, not {cls!r}")
    return tuple(classes)


ON_REQUEST: Final = RetryPolicy(max_attempts=4, retry_on=())
"""What holds where nobody gave a policy: only a task that raises `Retry` is tried again, three times as in Celery."""
