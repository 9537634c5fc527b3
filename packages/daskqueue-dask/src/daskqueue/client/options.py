"""Options of pools: defaults, `dask.config` under `daskqueue:`, and errors that name what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import dask
from dask.utils import parse_bytes, parse_timedelta

__all__ = ["POOL_DEFAULTS", "Durability", "check_count", "pool_options", "reject_unknown"]


class Durability(str, Enum):
    """Where a pool's messages live. Durable pools come with the store."""

    TRANSIENT = "transient"
    DURABLE = "durable"


POOL_DEFAULTS: Final[Mapping[str, Any]] = {
    "durability": Durability.TRANSIENT,
    "result_ttl": "1h",
    "result_max_bytes": "256 MiB",
    "maxsize": 0,
    "max_bytes": None,
    "on_full": "wait",
    "on_queue_lost": "resubmit",
    "rehost_timeout": "60s",
}
"""Options of QueuePool beside its client, `n_queues` and `name`."""

_CHOICES: Final = {"on_queue_lost": ("resubmit", "fail"), "on_full": ("wait", "raise")}


def pool_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a pool, in plain values: what is given, else `dask.config`, else the default."""
    reject_unknown("QueuePool", given, {*POOL_DEFAULTS, "name", "n_queues"})
    options = {
        name: given[name] if name in given else dask.config.get(f"daskqueue.{name.replace('_', '-')}", default)
        for name, default in POOL_DEFAULTS.items()
    }
    options["durability"] = _durability(options["durability"])
    for name in ("result_ttl", "rehost_timeout"):
        value = options[name]
        options[name] = None if value is None and name == "result_ttl" else _seconds(name, value)
    for name in ("result_max_bytes", "max_bytes"):
        if options[name] is not None:
            options[name] = _number(name, _bytes(name, options[name]))
    options["maxsize"] = _number("maxsize", options["maxsize"])
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {options[name]!r}")
    return options


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
    if durability is Durability.DURABLE:
        raise NotImplementedError("durable pools come with daskqueue-storage's store; use durability='transient'")
    return str(durability.value)
