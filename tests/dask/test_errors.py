"""daskqueue.wire.errors: an exception's way home."""

import errno
import pickle
import sys
import threading
import traceback
from pathlib import Path

import pytest

from daskqueue.wire import errors
from daskqueue.wire.errors import RemoteError, RemoteTraceback, decode_error, encode_error
from daskqueue_core.errors import DaskQueueError


class TwoArguments(Exception):
    """The classic that pickle breaks: an __init__ of its own."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail


class Rewrites(Exception):
    """Its __init__ changes its message, so running it again would change it again."""

    def __init__(self, message: str) -> None:
        super().__init__(f"<{message}>")


class MyOSError(OSError):
    """An OSError with a signature of its own."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "gone", path)


class MyExit(SystemExit):
    """Its code is kept in C, not among its attributes."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(code)
        self.why = why


class Hostile(Exception):
    """Everything about it raises."""

    def __reduce__(self) -> str:
        raise SystemExit("no")

    def __str__(self) -> str:
        raise KeyboardInterrupt


class ExitsOnLoad(Exception):
    """Pickles well, ends the process that reads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return sys.exit, (3,)


class RaisesOnLoad:
    """Pickles well, and raises what it is told where it is read."""

    def __init__(self, ending: type[BaseException]) -> None:
        self.ending = ending

    def __reduce__(self) -> tuple[object, ...]:
        return throw, (self.ending,)


def throw(kind: type[BaseException]) -> None:
    """Raise it."""
    raise kind


def raised(error: BaseException) -> BaseException:
    """The same error with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def travelled(error: BaseException) -> BaseException:
    """The error as the client sees it."""
    return decode_error(*encode_error(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", 3),
        KeyError("k"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        FileNotFoundError(errno.ENOENT, "gone", "path"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
        ImportError("no", name="module"),
        TwoArguments(7, detail="d"),
        Rewrites("m"),
        MyOSError("path"),
        MyExit(3, why="w"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_type_message_and_fields_survive(error: BaseException) -> None:
    """The client gets the class, the words and the attributes that were raised."""
    back = travelled(raised(error))
    assert type(back) is type(error)
    assert (str(back), back.args, back.__dict__) == (str(error), error.args, error.__dict__)
    for field in ("errno", "filename", "code", "name", "start"):
        assert getattr(back, field, None) == getattr(error, field, None)


def test_remote_traceback_is_the_cause() -> None:
    """Printed in the client, the error shows where it was raised on the worker, its causes too."""

    def user_function() -> None:
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("outer") from error

    try:
        user_function()
    except RuntimeError as error:
        back = travelled(error)
    assert isinstance(back.__cause__, RemoteTraceback)
    printed = "".join(traceback.format_exception(type(back), back, back.__traceback__))
    assert "user_function" in printed
    assert "invalid literal" in printed
    assert "direct cause" in printed


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with 3.11")
def test_notes_survive() -> None:
    """PEP 678 notes travel."""
    error = ValueError("x")
    error.add_note("look here")  # type: ignore[attr-defined, unused-ignore]
    assert travelled(error).__notes__ == ["look here"]  # type: ignore[attr-defined, unused-ignore]


def test_context_is_not_pickled() -> None:
    """An unpicklable context or frame does not spoil the error: only its text travels (distributed would pickle it)."""
    pytest.importorskip("distributed")
    try:
        try:
            raise TwoArguments(1, detail="d")
        except TwoArguments as inner:
            inner.lock = threading.Lock()  # type: ignore[attr-defined]
            raise ValueError("outer")  # noqa: B904
    except ValueError as error:
        back = travelled(error)
    assert type(back) is ValueError


@pytest.mark.parametrize("error", [Hostile(), ExitsOnLoad(), type("Local", (Exception,), {"x": threading.Lock()})("m")])
def test_what_cannot_travel_becomes_remote_error(error: BaseException) -> None:
    """A stand-in names the class and keeps the traceback; whatever the class does, encoding does not raise."""
    back = travelled(raised(error))
    assert type(back) is RemoteError
    assert type(error).__qualname__ in back.type_name
    assert type(error).__qualname__ in str(back)
    assert back.text


@pytest.mark.parametrize("ending", [SystemExit, GeneratorExit, RecursionError])
def test_a_class_that_ends_its_reader_does_not_end_the_client(ending: type[BaseException]) -> None:
    """A copy that was read well on the worker may raise anything in the client: it hears of the task, and goes on."""
    copy = pickle.dumps(RaisesOnLoad(ending))
    back = decode_error(pickle.dumps(("module.Odd", "why", copy), 5), "traceback")
    assert type(back) is RemoteError
    assert (back.type_name, back.message) == ("module.Odd", "why")


def test_missing_class_becomes_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that only the worker can import: type name, message and text are still there."""
    blob, text = encode_error(raised(TwoArguments(7, detail="d")))
    monkeypatch.delattr(sys.modules[__name__], "TwoArguments")
    back = decode_error(blob, text)
    assert isinstance(back, RemoteError)
    assert back.type_name.endswith("TwoArguments")
    assert back.message == "code 7"


def test_damaged_blob() -> None:
    """Damaged bytes are an error with the text, not a crash of the collector."""
    back = decode_error(b"\x80garbage", "text")
    assert isinstance(back, RemoteError)
    assert str(back.__cause__) == '\n"""\ntext"""'


def test_text_is_short_and_printable() -> None:
    """At most 64 KiB, and encodable for the wire even with lone surrogates."""
    _, text = encode_error(raised(ValueError("\udcff" + "é" * 100_000)))
    assert len(text.encode()) <= 64 * 1024
    assert "bytes cut" in text
    assert "\\udcff" in text


def test_own_errors_pickle_and_have_one_base() -> None:
    """Every error of this module is a DaskQueueError and survives plain pickle with its fields."""
    for name in errors.__all__:
        cls = getattr(errors, name)
        if isinstance(cls, type) and issubclass(cls, BaseException):
            assert cls is RemoteTraceback or issubclass(cls, DaskQueueError)
            assert str(pickle.loads(pickle.dumps(cls("message")))) == str(cls("message"))
            assert name in (errors.__doc__ or "")
    back = travelled(errors.UnpicklableArgument("m", argument="key", index=3))
    assert isinstance(back, errors.UnpicklableArgument)
    assert (back.argument, back.index) == ("key", 3)


def test_path_is_this_file() -> None:
    """Frames of the user's code keep their file and line."""
    _, text = encode_error(raised(ValueError("x")))
    assert Path(__file__).name in text
