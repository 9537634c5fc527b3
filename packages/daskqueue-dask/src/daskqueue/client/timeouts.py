"""The timeout error of a wait: on Python 3.10 the standard library has two, and people catch either."""

from __future__ import annotations

import concurrent.futures
import sys

__all__ = ["WaitTimeout"]


if sys.version_info >= (3, 11):
    WaitTimeout = TimeoutError
else:

    class WaitTimeout(concurrent.futures.TimeoutError, TimeoutError):
        """A wait was over before what it waited for."""
