"""What a batch says of how its tasks are run: their timeout and retry policy, opaque to the queue.

    u8 format | pickle of (timeout, retry policy)

Empty where nothing was asked for, so that ordinary batches pay nothing. The policy names exception classes of the
user's, so reading it is user code: it happens where the tasks run, never on the worker's event loop.

Not here: what follows from it (`worker.runners`, `worker.verdicts`).

Invariant: what cannot be read raises `ControlLoadError` and nothing else, and is not remembered: a module that is
installed later is found.
"""

from __future__ import annotations

import math
import pickle
import threading
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from daskqueue.wire.errors import LoadError
from daskqueue.wire.functions import Buffer
from daskqueue.wire.pickles import dumps
from daskqueue_core.retry import RetryPolicy

__all__ = ["CACHED_MAX", "Control", "ControlLoadError", "decode_control", "encode_control"]

FORMAT: Final = 1
CACHED_MAX: Final = 64


class Control(NamedTuple):
    """How the tasks of a batch are run; None where the consumer's own rule holds."""

    #: seconds one attempt may take
    timeout: float | None = None
    retry: RetryPolicy | None = None


class ControlLoadError(LoadError):
    """The task's options could not be read on the worker."""


def encode_control(control: Control) -> bytes:
    """`control` for the wire, b"" if it says nothing. Raises ValueError for a timeout that is none."""
    timeout, retry = control
    if timeout is None and retry is None:
        return b""
    if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a number of seconds above 0, or None for no limit, not {timeout!r}")
    return bytes([FORMAT]) + dumps((None if timeout is None else float(timeout), retry))


_decoded: OrderedDict[bytes, Control] = OrderedDict()
_lock = threading.Lock()


def decode_control(data: Buffer) -> Control:
    """What `encode_control` wrote, from the cache if this process has read it; raises ControlLoadError."""
    if not data:
        return _NOTHING
    key = bytes(data)
    with _lock:
        control = _decoded.get(key)
        if control is not None:
            _decoded.move_to_end(key)
            return control
    control = _decode(key)
    with _lock:
        control = _decoded.setdefault(key, control)
        while len(_decoded) > CACHED_MAX:
            _decoded.popitem(last=False)
    return control


_NOTHING: Final = Control()


def _decode(data: bytes) -> Control:
    if data[0] != FORMAT:
        raise ControlLoadError(
            f"a task's options came in format {data[0]}, this worker reads format {FORMAT}:"
            " install the same version of daskqueue-dask on client and workers."
        )
    try:
        read: Any = pickle.loads(memoryview(data)[1:])
        timeout, retry = read
        if not (isinstance(timeout, (float, type(None))) and isinstance(retry, (RetryPolicy, type(None)))):
            raise TypeError(f"{read!r} is not a timeout and a retry policy")
    except BaseException as error:  # importing runs anything, sys.exit too
        raise ControlLoadError(
            f"the task's options (timeout and retry policy) could not be loaded on the worker:"
            f" {type(error).__name__}: {error}. If the module of an exception class in retry_on or never_on is missing"
            " there, install it on every worker, or send it along with cloudpickle.register_pickle_by_value(module)."
        ) from error
    return Control(timeout, retry)
