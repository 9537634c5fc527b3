"""Options of pools: defaults, `dask.config` under `daskqueue:`, and errors that name what is wrong."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from math import isfinite
from numbers import Real
from typing import Any, Final

import dask
from dask.utils import parse_bytes, parse_timedelta

from daskqueue.wire.control import Control, ControlLoadError, decode_control, encode_control
from daskqueue.wire.walltime import AFTER, AT, AUTO, NEVER
from daskqueue_core.errors import DaskQueueError
from daskqueue_core.retry import ATTEMPTS_MAX, LONGEST_S, RetryPolicy
from daskqueue_core.time_requests import PREFIX

__all__ = [
    "POOL_DEFAULTS",
    "Durability",
    "check_count",
    "check_dirpath",
    "check_drain_before",
    "check_duration",
    "check_retries",
    "check_retry",
    "check_tags",
    "check_walltime",
    "pool_control",
    "pool_options",
    "pool_retry",
    "reject_unknown",
]


class Durability(str, Enum):
    """Where a pool's messages live: in the memory of a worker, or in a directory as well."""

    TRANSIENT = "transient"
    DURABLE = "durable"


SHORTEST_LEASE_S: Final = 3.0

POOL_DEFAULTS: Final[Mapping[str, Any]] = {
    "durability": Durability.TRANSIENT,
    "dirpath": None,
    "sync": "batch",
    "storage": {},
    "result_ttl": "1h",
    "result_max_bytes": "256 MiB",
    "maxsize": 0,
    "max_bytes": None,
    "on_full": "wait",
    "on_queue_lost": "resubmit",
    "rehost_timeout": "60s",
    "lease_timeout": None,
    "retry": None,
}
"""Options of QueuePool beside its client, `n_queues` and `name`."""

DURABLE_DEFAULTS: Final[Mapping[str, Any]] = {"result_ttl": None, "result_max_bytes": None, "max_bytes": 0}
"""Those that are others for a durable pool: its results stay until somebody forgets them, its messages are on disk."""

STORAGE_DEFAULTS: Final[Mapping[str, Any]] = {
    "lock_ttl": "10s",
    "segment_bytes": "64 MiB",
    "ack_sync": False,
    "allow_shared": False,
}
"""What `storage=` may say, as `daskqueue_storage.DurableQueue` takes it."""

# Options with an underscore are carried and not compared: pickles of equal policies may differ.
_CONTROL: Final = "_control"
_MAX_CRASHES: Final = "_max_crashes"

_CHOICES: Final = {"on_queue_lost": ("resubmit", "fail"), "on_full": ("wait", "raise")}


def pool_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a pool, in plain values: what is given, else `dask.config`, else the default."""
    reject_unknown("QueuePool", given, {*POOL_DEFAULTS, "name", "n_queues"})
    durability = _durability(_chosen(given, "durability", POOL_DEFAULTS["durability"]))
    defaults = {**POOL_DEFAULTS, **(DURABLE_DEFAULTS if durability == Durability.DURABLE else {})}
    options = {name: _chosen(given, name, default) for name, default in defaults.items()}
    options["durability"] = durability
    _check_directory(options)
    for name in ("result_ttl", "rehost_timeout", "lease_timeout"):
        value = options[name]
        options[name] = None if value is None and name != "rehost_timeout" else _seconds(name, value)
    if options["lease_timeout"] is not None and options["lease_timeout"] < SHORTEST_LEASE_S:
        what = f"lease_timeout must be at least {SHORTEST_LEASE_S:g} s, not {options['lease_timeout']:g}"
        raise ValueError(f"{what}: consumers say once a second that they are there")
    for name in ("result_max_bytes", "max_bytes"):
        if options[name] is not None:
            options[name] = _number(name, _bytes(name, options[name]))
    options["maxsize"] = _number("maxsize", options["maxsize"])
    retry = check_retry(options["retry"])
    options["retry"] = None if retry is None else repr(retry)
    if retry is not None:
        options[_CONTROL] = encode_control(Control(retry=retry))
        options[_MAX_CRASHES] = retry.max_crashes
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {options[name]!r}")
    return options


def _chosen(given: Mapping[str, Any], name: str, default: Any) -> Any:
    return given[name] if name in given else dask.config.get(f"daskqueue.{name.replace('_', '-')}", default)


def _check_directory(options: dict[str, Any]) -> None:
    """Where and how a durable pool is on disk."""
    dirpath, sync, storage = options["dirpath"], options["sync"], options["storage"]
    if sync not in ("batch", "none"):
        options["sync"] = _seconds("sync", sync)
        if not options["sync"]:
            raise ValueError("sync must be 'batch', 'none', or seconds above 0")
    if options["durability"] == Durability.TRANSIENT:
        if dirpath is not None:
            raise ValueError(f"dirpath={dirpath!r} is for a durable pool: add durability='durable'")
        options["storage"] = {}
        return
    if dirpath is None:
        raise TypeError("a durable pool needs dirpath=, a directory that the workers see")
    options["dirpath"] = check_dirpath(dirpath)
    if not isinstance(storage, Mapping):
        raise TypeError(f"storage must be a dict of options of the store, not {storage!r}")
    reject_unknown("storage=", storage, set(STORAGE_DEFAULTS))
    merged = {**STORAGE_DEFAULTS, **storage}
    for name in ("ack_sync", "allow_shared"):
        if not isinstance(merged[name], bool):
            raise ValueError(f"storage option {name} must be True or False, not {merged[name]!r}")
    merged["lock_ttl"] = _seconds("lock_ttl", merged["lock_ttl"])
    if merged["lock_ttl"] < 1:
        raise ValueError(f"lock_ttl must be at least a second, not {merged['lock_ttl']}")
    merged["segment_bytes"] = _bytes("segment_bytes", merged["segment_bytes"])
    if merged["segment_bytes"] < 4096:
        raise ValueError(f"segment_bytes must be at least 4096, not {merged['segment_bytes']}")
    options["storage"] = merged


def check_dirpath(value: Any) -> str:
    """`value` as an absolute path, for processes that work elsewhere."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"dirpath must be a path, not {value!r}")
    path = os.fspath(value)
    if not isinstance(path, str) or not path:
        raise ValueError(f"dirpath must be a path as text, not {value!r}")
    return os.path.abspath(os.path.expanduser(path))


def pool_control(options: Mapping[str, Any]) -> tuple[bytes, int]:
    """What tasks without options bring: how consumers run them, and `max_crashes`."""
    return options.get(_CONTROL, b""), options.get(_MAX_CRASHES, RetryPolicy.max_crashes)


def pool_retry(options: Mapping[str, Any]) -> RetryPolicy | None:
    """The policy of a pool, whoever made it. Raises if an exception class that it names cannot be loaded here."""
    try:
        return decode_control(options.get(_CONTROL, b"")).retry
    except ControlLoadError as error:
        raise DaskQueueError(
            f"the pool's {options['retry']} cannot be loaded here: {error.__cause__}. Install the module that is "
            "missing in this environment, or give a policy: options(retry=...)"
        ) from error


def check_retry(value: Any) -> RetryPolicy | None:
    """`value` as a retry policy, or None."""
    if value is not None and not isinstance(value, RetryPolicy):
        raise TypeError(f"retry must be a RetryPolicy, not {value!r}: RetryPolicy(max_attempts=3) tries three times")
    return value


def check_retries(value: Any) -> int:
    """`value` as a number of retries."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"retries must be a whole number, not {value!r}")
    if not 0 <= value < ATTEMPTS_MAX:
        raise ValueError(f"retries must be from 0 to {ATTEMPTS_MAX - 1}, not {value}")
    return value


def check_tags(value: Any) -> tuple[str, ...]:
    """`value` as tags: sorted, each once."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"tags must be a list of strings, not {value!r}: [{value!r}] is one tag")
    if not isinstance(value, Iterable):
        raise TypeError(f"tags must be a list of strings, not {value!r}")
    tags = list(value)
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(f"a tag must be a string, not {tag!r}")
        if not tag:
            raise ValueError("a tag must not be empty")
        if tag.startswith(PREFIX):
            raise ValueError(f"tags must not begin with {PREFIX!r}, as {tag!r} does: use options(time_request=...)")
        try:
            tag.encode()
        except UnicodeEncodeError:
            raise ValueError(f"tag {tag!r} cannot be written as UTF-8") from None
    return tuple(sorted(set(tags)))


def check_duration(name: str, value: Any) -> float:
    """`value` as seconds: a number, a timedelta, or text such as '90s' or '1h'."""
    if isinstance(value, bool) or not isinstance(value, (str, Real, timedelta)):
        raise TypeError(f"{name} must be seconds, a timedelta, or text such as '90s' or '1h', not {value!r}")
    seconds = _seconds(name, value)
    if not isfinite(seconds) or seconds > LONGEST_S:
        raise ValueError(f"{name} must be at most 100 years, not {value!r}")
    return seconds


def check_drain_before(value: Any) -> float:
    """`value`, or else what `dask.config` says, as seconds."""
    return check_duration("drain_before", _chosen({} if value is None else {"drain_before": value}, "drain_before", 0))


def check_walltime(value: Any) -> tuple[str, float]:
    """`value`, or for "auto" what `dask.config` says, as `wire.walltime` has it."""
    if isinstance(value, str) and value == AUTO:
        value = dask.config.get("daskqueue.walltime", AUTO)
    if value is None:
        return NEVER, 0.0
    if isinstance(value, str) and value == AUTO:
        return AUTO, 0.0
    if isinstance(value, datetime):
        try:
            return AT, value.timestamp()
        except (OverflowError, OSError, ValueError):
            raise ValueError(f"walltime must be a time that this machine can tell, not {value!r}") from None
    seconds = check_duration("walltime (when it is neither 'auto' nor None nor a datetime)", value)
    if not seconds:
        raise ValueError("walltime must be above 0: None says that there is no end")
    return AFTER, seconds


def reject_unknown(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Raise TypeError for an option that does not exist, with the one that may be meant."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}"
            raise TypeError(f"{what} has no option {name!r}{hint}")


def check_count(name: str, value: Any) -> int:
    """`value` as a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _bytes(name: str, value: Any) -> int:
    try:
        return int(parse_bytes(value))
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{name} must be a number of bytes, or text such as '256 MiB', not {value!r}") from None


def _number(name: str, value: Any) -> int:
    """`value` as a whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, not {value}")
    return value


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(parse_timedelta(value))
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{name} must be seconds, or text such as '90s' or '1h', not {value!r}") from None
    if not seconds >= 0:
        raise ValueError(f"{name} must not be negative, not {value!r}")
    return seconds


def _durability(value: Any) -> str:
    try:
        durability = Durability(value)
    except ValueError:
        known = [member.value for member in Durability]
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"durability must be one of {', '.join(map(repr, known))}, not {value!r}{hint}") from None
    return str(durability.value)
