"""Options of single tasks: what `pool.options(...)` takes, checked where it is called.

`TaskOptions` is what a type checker knows of them, `Choice` what was chosen, checked and in plain values, `Terms` what
the tasks of one batch have in common. Times are given in seconds, and become nanoseconds of the wall clock at the call
that submits.

Not here: what queues and consumers do with them.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypedDict

from daskqueue.client.naming import check_key
from daskqueue.client.options import check_duration, check_retry, check_tags, reject_unknown
from daskqueue.wire.control import Control, encode_control
from daskqueue_core.batch import Batch, Keep, OnDuplicate
from daskqueue_core.retry import LONGEST_S, RetryPolicy
from daskqueue_core.time_requests import time_tag

__all__ = ["EXPIRES_STEP", "NOTHING", "Choice", "TaskOptions", "Terms", "choose", "terms_of"]

EXPIRES_STEP: Final = 10_000_000
"""Relative `expires` are rounded up to so many nanoseconds: else no two calls of a loop would travel together."""


class TaskOptions(TypedDict, total=False):
    """Options of `QueuePool.options`; None where None is not a value: as if it were not given."""

    #: names the task, instead of a key that is made for it; for `submit` and `put`
    key: str | None
    #: if a task with that key is unfinished, or its result is kept: "return" (default: its future hears of that one),
    #: "raise" (it ends with DuplicateKey) or "replace" (the other one is cancelled, or forgotten)
    on_duplicate: Literal["return", "raise", "replace"] | None
    #: higher first, from -32768 to 32767
    priority: int | None
    #: seconds from the call on, before which it is not begun
    delay: float | None
    #: the same as a time: a datetime (without time zone: local time) or seconds since the epoch
    eta: datetime | float | None
    #: when not begun by then, it ends with TaskExpired: seconds from the call on, or a datetime (as `eta`)
    expires: datetime | float | None
    #: seconds that an attempt may take
    timeout: float | None
    #: when it is tried again; default: the pool's policy, then that of the consumers
    retry: RetryPolicy | None
    #: only consumers that have all of these take it
    tags: Iterable[str] | None
    #: only consumers whose job does not end sooner take it: seconds, a timedelta, or text such as "20m"
    time_request: float | str | timedelta | None
    #: False: nobody reads what it returns; its future ends with None
    store_result: bool | None


_NAMES: Final = frozenset(TaskOptions.__annotations__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Options of tasks, checked. Times are nanoseconds."""

    given: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """As they were given, for views of views."""
    key: str | None = None
    on_duplicate: int = OnDuplicate.RETURN
    priority: int = 0
    delay: int = 0
    eta: int = 0
    expires_in: int = 0
    expires_at: int = 0
    timeout: float | None = None
    retry: RetryPolicy | None = None
    tags: tuple[str, ...] = ()
    """With the time request, if there is one."""
    store_result: bool = True

    def ready_at(self) -> int:
        """Not begun before; 0: at once."""
        return time.time_ns() + self.delay if self.delay else self.eta

    def expiry(self) -> int:
        """Not begun after; 0: at any time."""
        if not self.expires_in:
            return self.expires_at
        return -(-(time.time_ns() + self.expires_in) // EXPIRES_STEP) * EXPIRES_STEP


NOTHING: Final = Choice()


class Terms(NamedTuple):
    """What calls have in common that travel as one batch, beside their function."""

    keep: Keep = Keep.KEEP
    control: bytes = b""
    priority: int = 0
    expires_at: int = 0
    on_duplicate: int = OnDuplicate.RETURN
    tags: tuple[str, ...] = ()
    max_crashes: int = RetryPolicy.max_crashes
    keyed: bool = False  # each has a key
    timed: bool = False  # each has a time before which it is not begun
    discard: bool = False  # nobody reads what they return

    def on(self, batch: Batch) -> Batch:
        """`batch` under these terms. Keys and times of its messages are its own."""
        return batch._replace(
            keep=self.keep,
            control=self.control,
            priority=self.priority,
            expires_at=self.expires_at,
            on_duplicate=self.on_duplicate,
            tags=self.tags,
            max_crashes=self.max_crashes,
        )


PLAIN: Final = Terms()


def terms_of(
    choice: Choice, keep: Keep, pool: Terms = PLAIN, pool_retry: Callable[[], RetryPolicy | None] = lambda: None
) -> Terms:
    """The terms of tasks under `choice`, whose outcomes are kept as `keep` says unless the choice says otherwise.

    `pool`: the terms of its tasks without options. Its policy holds for what brings none; it is read only beside a
    timeout, since a class that it names may be missing here.
    """
    if not choice.store_result:
        keep = min(keep, Keep.STREAM)
    elif choice.key is not None and keep is Keep.STREAM:
        keep = Keep.KEEP  # whoever names a task asks for it by that name
    control, max_crashes = pool.control, pool.max_crashes
    if choice.retry is not None:
        control, max_crashes = _control(choice.timeout, choice.retry), choice.retry.max_crashes
    elif choice.timeout is not None:
        control = _control(choice.timeout, pool_retry())
    return Terms(
        keep=keep,
        control=control,
        priority=choice.priority,
        expires_at=choice.expiry(),
        on_duplicate=choice.on_duplicate,
        tags=choice.tags,
        max_crashes=max_crashes,
        keyed=choice.key is not None,
        timed=bool(choice.delay or choice.eta),
        discard=not choice.store_result,
    )


@lru_cache(maxsize=64)
def _control(timeout: float | None, retry: RetryPolicy | None) -> bytes:
    return encode_control(Control(timeout, retry))


def choose(given: Mapping[str, Any], before: Choice = NOTHING) -> Choice:
    """Check options, on top of those chosen before. TypeError or ValueError says what is wrong with one."""
    reject_unknown("options()", given, set(_NAMES))
    options = {name: value for name, value in {**before.given, **given}.items() if value is not None}
    if "delay" in options and "eta" in options:
        raise ValueError(
            f"delay={options['delay']!r} and eta={options['eta']!r} say the same thing twice: give one of them"
            " (None takes back what an outer options() said)"
        )
    expires = options.get("expires")
    dated = isinstance(expires, datetime)
    chosen = Choice(
        given=options,
        key=check_key(options["key"]) if "key" in options else None,
        on_duplicate=_on_duplicate(options.get("on_duplicate", "return")),
        priority=_priority(options.get("priority", 0)),
        delay=round(_seconds("delay", options.get("delay", 0)) * 1e9),
        eta=_moment("eta", options["eta"]) if "eta" in options else 0,
        expires_in=0 if expires is None or dated else round(_seconds("expires", expires, positive=True) * 1e9),
        expires_at=_moment("expires", expires) if dated else 0,
        timeout=_seconds("timeout", options["timeout"], positive=True) if "timeout" in options else None,
        retry=check_retry(options.get("retry")),
        tags=_tags(options),
        store_result=_flag("store_result", options.get("store_result", True)),
    )
    _control(chosen.timeout, chosen.retry)  # a policy that cannot be pickled is an error here
    return chosen


def _tags(options: Mapping[str, Any]) -> tuple[str, ...]:
    tags = check_tags(options.get("tags", ()))
    if "time_request" not in options:
        return tags
    seconds = check_duration("time_request", options["time_request"])
    if not seconds:
        raise ValueError("time_request must be above 0: None takes one back")
    return tuple(sorted((*tags, time_tag(seconds))))


def _on_duplicate(value: Any) -> OnDuplicate:
    names = [member.name.lower() for member in OnDuplicate]
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"on_duplicate must be one of {', '.join(map(repr, names))}, not {value!r}")
    return OnDuplicate[value.upper()]


def _priority(value: Any) -> int:
    try:
        priority = operator.index(value)
    except TypeError:
        raise TypeError(f"priority must be a whole number, not {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"priority must be a whole number, not {value!r}")
    if not -0x8000 <= priority < 0x8000:
        raise ValueError(f"priority must be from -32768 to 32767, not {priority}")
    return priority


def _seconds(name: str, value: Any, *, positive: bool = False) -> float:
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}") from None
    if not math.isfinite(seconds) or seconds < 0 or (positive and not seconds):
        raise ValueError(f"{name} must be a number of seconds {'above 0' if positive else 'from 0 on'}, not {value!r}")
    if seconds > LONGEST_S:
        raise ValueError(f"{name} must be at most 100 years, not {value!r} seconds")
    return seconds


def _moment(name: str, value: Any) -> int:
    """Nanoseconds since the epoch. A datetime without a time zone is local time, as `datetime.timestamp` has it."""
    if isinstance(value, datetime):
        try:
            seconds = value.timestamp()
        except (OverflowError, OSError, ValueError):
            raise ValueError(f"{name} must be a time that this machine can tell, not {value!r}") from None
    elif isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name} must be a datetime or seconds since the epoch, not {value!r}")
    else:
        try:
            seconds = float(value)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{name} must be a datetime or seconds since the epoch, not {value!r}") from None
    if not 0 <= seconds <= time.time() + LONGEST_S:
        raise ValueError(f"{name} must be a time from 1970 on and in less than 100 years, not {value!r}")
    return max(1, round(seconds * 1e9))  # 0 would mean: none


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value
