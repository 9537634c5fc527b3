"""What can go wrong with a call on its way, and how an exception travels home.

    DaskQueueError
      CallError                     a call could not travel
        UnpicklableCall             (also TypeError) raised where the caller stands, or the task's error for a result
          UnpicklableFunction
          UnpicklableArgument
          UnpicklableResult
        LoadError                   the worker could not read what it was sent
          FunctionLoadError
          ArgumentLoadError
          ControlLoadError          (in `control`) its timeout and retry policy
        ResultLoadError             the client could not read what the worker sent
        RemoteError                 stands in for an exception that cannot travel
    RemoteTraceback                 the `__cause__` of every exception that came from a worker

An error travels as a blob and a text. The blob is a pickle of (type name, message, pickle of the exception or None):
the inner one is opened only by `decode_error`, so a class that the reader lacks spoils no more than itself. The text is
the traceback as the worker would have printed it; tools show it without unpickling anything.

Traceback frames are not rebuilt (tblib could): the text as cause prints every frame already, and twice is noise.

Invariants:
- `encode_error` and `decode_error` never raise, whatever `__str__`, `__reduce__` or `__init__` of the exception do (but
  for a KeyboardInterrupt in `decode_error`: there it is the user's).
- The exception's causes, contexts and frames are never pickled: they hold anything. They are in the text.
- Errors of ours carry one positional argument, the message; their fields are attributes, so they pickle by themselves.
"""

from __future__ import annotations

import io
import pickle
import traceback
from types import FunctionType, TracebackType
from typing import Any, NamedTuple

import cloudpickle

from daskqueue.wire.pickles import PROTOCOL, UNREADABLE
from daskqueue_core.errors import DaskQueueError
from daskqueue_core.outcomes import FailureReason

__all__ = [
    "ArgumentLoadError",
    "CallError",
    "FunctionLoadError",
    "LoadError",
    "RemoteError",
    "RemoteTraceback",
    "ResultLoadError",
    "TaskFailure",
    "UnpicklableArgument",
    "UnpicklableCall",
    "UnpicklableFunction",
    "UnpicklableResult",
    "decode_error",
    "encode_error",
    "message_of",
]

TEXT_BYTES_MAX = 64 * 1024

# Frames of these modules stand above the user's function in every traceback and say nothing about it.
_OUR_MODULES = ("daskqueue.worker.", "daskqueue.wire.")


class CallError(DaskQueueError):
    """A call, or what came of it, could not travel."""


class UnpicklableCall(CallError, TypeError):
    """Something of a call cannot be pickled."""


class UnpicklableFunction(UnpicklableCall):
    """The function cannot be pickled."""


class UnpicklableArgument(UnpicklableCall):
    """An argument cannot be pickled."""

    def __init__(self, message: str, *, argument: int | str | None = None, index: int | None = None) -> None:
        super().__init__(message)
        #: position or keyword of the argument, None if it is an item or could not be told
        self.argument = argument
        #: which element of the block, None for a single call
        self.index = index


class UnpicklableResult(UnpicklableCall):
    """What the function returned cannot be pickled, or not be unpickled again."""


class LoadError(CallError):
    """The worker could not read what it was sent."""


class FunctionLoadError(LoadError):
    """The function could not be loaded on the worker."""


class ArgumentLoadError(LoadError):
    """The arguments could not be unpickled on the worker."""


class ResultLoadError(CallError):
    """The results could not be unpickled in the client."""


class RemoteError(CallError):
    """Stands in for a worker's exception that cannot be pickled, or whose class is missing here."""

    def __init__(self, message: str, *, type_name: str = "", text: str = "") -> None:
        super().__init__(message)
        #: the class of the original exception
        self.type_name = type_name
        self.message = message
        #: the original traceback
        self.text = text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.type_name else self.message


class RemoteTraceback(Exception):
    """The traceback of an exception as it looked on the worker."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class TaskFailure(NamedTuple):
    """How one element of a run failed: `position` counts from the run's first element."""

    position: int
    blob: bytes
    text: str
    #: nanoseconds after which it is tried again; negative: it is not
    retry_in: int = -1
    #: the element's own payload as a single, if it failed for good and came in a block
    body: bytes = b""
    reason: int = FailureReason.FAILED


def encode_error(error: BaseException) -> tuple[bytes, str]:
    """Turn an exception into (blob, text). A copy that does not come back as the same class is not sent."""
    type_name, message, text = _type_name(error), message_of(error), _text(error)
    copy: bytes | None
    try:
        copy = _dump(error)
        if type(pickle.loads(copy)) is not type(error):
            copy = None
    except BaseException:  # its __reduce__ or __init__ may raise anything, SystemExit too
        copy = None
    return pickle.dumps((type_name, message, copy), PROTOCOL), text


def decode_error(blob: bytes | bytearray | memoryview, text: str) -> BaseException:
    """Rebuild the exception, with the remote traceback as its cause."""
    type_name, message, error = "", "the error's bytes are damaged", None
    try:
        type_name, message, copy = pickle.loads(blob)
        error = None if copy is None else pickle.loads(copy)
    except UNREADABLE:
        pass  # the class is not importable here, or its __init__ refuses: RemoteError carries what is known
    if not isinstance(error, BaseException):
        error = RemoteError(message, type_name=type_name, text=text)
    error.__cause__ = RemoteTraceback(text)
    return error


class _ErrorPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle ships no types
    """Pickles exceptions without cause, context and traceback, and by state where `__init__` has its own signature.

    `BaseException.__reduce__` calls `cls(*args)`, which raises or garbles the message of a class with an `__init__` of
    its own. Once distributed is imported, copyreg also drags in frames and contexts: `reducer_override` comes first.
    """

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, BaseException):
            return super().reducer_override(obj)
        cls = type(obj)
        if cls.__reduce__ in _DEFAULT_REDUCERS and type(cls.__init__) is FunctionType:
            state = dict(obj.__dict__)
            if isinstance(obj, OSError):
                fields = {name: getattr(obj, name) for name in ("errno", "strerror", "filename", "filename2")}
                state.update((name, value) for name, value in fields.items() if value is not None)
            return _rebuild, (cls, obj.args, state)
        return obj.__reduce_ex__(PROTOCOL)


_DEFAULT_REDUCERS = (BaseException.__reduce__, OSError.__reduce__)


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    # the built-in class's own __init__ sets what it keeps in C (SystemExit.code, UnicodeError's fields)
    inits = (vars(base).get("__init__") for base in cls.__mro__)
    builtin_init = next(init for init in inits if init is not None and type(init) is not FunctionType)
    builtin_init(error, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


def _dump(error: BaseException) -> bytes:
    with io.BytesIO() as file:
        _ErrorPickler(file, PROTOCOL).dump(error)
        return file.getvalue()


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def message_of(error: BaseException) -> str:
    """What it says, whatever its `__str__` does; not too long."""
    try:
        return _printable(str(error), TEXT_BYTES_MAX // 4)
    except BaseException:
        return "<exception str() failed>"


def _text(error: BaseException) -> str:
    try:
        report = traceback.TracebackException(type(error), error, _their_frames(error.__traceback__), compact=True)
        return _printable("".join(report.format()), TEXT_BYTES_MAX)
    except BaseException:  # a __str__ that raises SystemExit, a chain too deep to format
        return f"{_type_name(error)}: {message_of(error)}\n"


def _their_frames(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith(_OUR_MODULES):
        frames = frames.tb_next
    return frames


def _printable(text: str, bytes_max: int) -> str:
    """Text that encodes as UTF-8 (a lone surrogate does not), its middle cut out if too long."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > bytes_max:
        half = bytes_max // 2 - 32
        data = data[:half] + b"\n... (%d bytes cut) ...\n" % (len(data) - 2 * half) + data[-half:]
    return data.decode("utf-8", "ignore")
