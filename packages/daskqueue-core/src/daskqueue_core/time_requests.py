"""Time requests: how long a consumer must still be there to be given a message.

A request travels as a tag, of a form that users cannot give their own: so it is a part of the route, and is put,
recorded, handed over and counted as tags are. Requests are rounded up to three digits, which bounds how many routes
there can be; what is asked for is always there.
"""

from __future__ import annotations

from collections.abc import Collection
from math import ceil, isfinite
from typing import Final

__all__ = ["PREFIX", "split_request", "time_tag"]

PREFIX: Final = "time>="
"""Tags that begin so are requests."""

_DIGITS: Final = 3


def time_tag(seconds: float) -> str:
    """The tag of a request for `seconds`, which must be finite and above 0."""
    if not (isfinite(seconds) and seconds > 0):
        raise ValueError(f"a request must be for some seconds, not {seconds!r}")
    whole = ceil(seconds)
    step = 10 ** max(0, len(str(whole)) - _DIGITS)
    return f"{PREFIX}{-(-whole // step) * step}"


def split_request(tags: Collection[str]) -> tuple[tuple[str, ...], int]:
    """Tags without requests, and the seconds that they ask for; 0: none."""
    plain, seconds = [], 0
    for tag in tags:
        if tag.startswith(PREFIX) and tag[len(PREFIX) :].isdecimal():
            seconds = max(seconds, int(tag[len(PREFIX) :]))
        else:
            plain.append(tag)
    return tuple(plain), seconds
