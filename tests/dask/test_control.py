"""daskqueue.wire.control: timeout and retry policy of a batch, on the wire."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from daskqueue.wire import control as module
from daskqueue.wire.control import CACHED_MAX, Control, ControlLoadError, decode_control, encode_control
from daskqueue.wire.errors import LoadError
from daskqueue_core.retry import RetryPolicy


class Flaky(Exception):
    """An exception of the user's."""


CONTROLS = [
    Control(timeout=2.5),
    Control(retry=RetryPolicy(max_attempts=3, retry_on=(Flaky, OSError), never_on=(KeyError,))),
    Control(1e-3, RetryPolicy(jitter=False)),
]


@pytest.mark.parametrize("control", CONTROLS)
def test_round_trip(control: Control) -> None:
    """As bytes and as a view of a larger message."""
    data = encode_control(control)
    assert decode_control(data) == control
    assert decode_control(memoryview(data)) == control


def test_nothing_costs_nothing() -> None:
    """No bytes for what says nothing, and none read."""
    assert encode_control(Control()) == b""
    assert decode_control(b"") == Control()


def test_whole_seconds_are_seconds() -> None:
    """An int is as good as a float."""
    assert decode_control(encode_control(Control(5))) == Control(5.0)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    """Where the caller stands."""
    with pytest.raises(ValueError, match="timeout must be"):
        encode_control(Control(timeout))


def test_one_reading_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal bytes are read once; the cache is bounded."""
    data = encode_control(CONTROLS[1])
    control = decode_control(data)
    with monkeypatch.context() as patch:
        patch.delattr(module, "_decode")
        assert decode_control(bytes(bytearray(data))) is control
    for number in range(2 * CACHED_MAX):
        decode_control(encode_control(Control(1.0 + number)))
    assert len(module._decoded) == CACHED_MAX


class Missing:
    """Pickles as something that fails to load, as a class of an absent module does."""

    error: BaseException = ImportError("no module named 'absent'")

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, (self.error,)


def _fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ImportError("absent"), SystemExit(3)])
def test_a_class_that_cannot_be_loaded(error: BaseException) -> None:
    """Whatever importing does, it is one clear error, and the next try reads again."""
    missing = Missing()
    missing.error = error
    data = bytes([module.FORMAT]) + pickle.dumps((None, missing))
    for _ in range(2):
        with pytest.raises(ControlLoadError, match="retry_on or never_on") as info:
            decode_control(data)
    assert type(error).__name__ in str(info.value)
    assert issubclass(ControlLoadError, LoadError)


@pytest.mark.parametrize("data", [b"\x63rest", b"\x01", b"\x01garbage", b"\x01" + pickle.dumps(("1", None))])
def test_damaged_bytes(data: bytes) -> None:
    """One clear error too."""
    with pytest.raises(ControlLoadError):
        decode_control(data)


def test_a_class_of_main_is_the_same_in_options_and_function() -> None:
    """They travel by value in two pickles, and on the worker a raised one is still an instance of the named one."""
    script = """
        import pickle, subprocess, sys
        from daskqueue.wire.control import Control, encode_control
        from daskqueue.wire.functions import encode_function
        from daskqueue_core.retry import RetryPolicy

        class Mine(Exception):
            pass

        def fn():
            raise Mine

        reader = '''
        import pickle, sys
        from daskqueue.wire.control import decode_control
        from daskqueue.wire.functions import load_call
        shared, control = pickle.load(sys.stdin.buffer)
        try:
            load_call(shared).fn()
        except Exception as error:
            assert type(error).__name__ == "Mine"
            assert isinstance(error, decode_control(control).retry.retry_on)
            print("same")
        '''
        import textwrap
        sent = pickle.dumps((encode_function(fn).shared, encode_control(Control(retry=RetryPolicy(retry_on=Mine)))))
        out = subprocess.run([sys.executable, "-c", textwrap.dedent(reader)], input=sent, capture_output=True)
        sys.stderr.buffer.write(out.stderr)
        sys.stdout.buffer.write(out.stdout)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.stdout.strip() == "same", ran.stderr
