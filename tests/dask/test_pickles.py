"""daskqueue.wire.pickles: bytes that another process can read."""

import pickle
import subprocess
import sys

import cloudpickle
import pytest

from daskqueue.wire.pickles import dumps, has_globals, is_by_value_module


class Point:
    """A class that both ends can import."""

    def __init__(self, x: int) -> None:
        self.x = x


@pytest.fixture
def main_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that `__main__` of this process defines, as a script's own would be."""
    namespace: dict[str, type] = {"__name__": "__main__"}  # type: ignore[dict-item]
    exec("class Foo:\n    def __init__(self): self.x = 41\n    def more(self): return self.x + 1\n", namespace)
    monkeypatch.setattr(sys.modules["__main__"], "Foo", namespace["Foo"], raising=False)
    return namespace["Foo"]


def test_plain_data_is_plain_pickle() -> None:
    """Data is written by pickle itself, without a second pass."""
    assert dumps((1, "a", {"b": [None]})) == pickle.dumps((1, "a", {"b": [None]}), 5)


@pytest.mark.parametrize("wrap", [lambda foo: foo, lambda foo: ("__main__", "Foo", foo)])
def test_instances_of_main_travel_by_value(main_class: type, wrap: object) -> None:
    """pickle alone would succeed here and fail in the process that reads, whose `__main__` is another."""
    data = dumps([wrap(main_class())])  # type: ignore[operator]
    code = "import pickle, sys; v = pickle.load(sys.stdin.buffer)[0]; print((v[-1] if type(v) is tuple else v).more())"
    answer = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert answer.stdout.strip() == b"42"


def test_by_value_class_comes_back_as_itself(main_class: type) -> None:
    """In the process that sent it, a class by value is the very same class again."""
    assert type(pickle.loads(dumps(main_class()))) is main_class


def test_registered_modules_travel_by_value() -> None:
    """cloudpickle.register_pickle_by_value is obeyed although pickle alone would succeed."""
    module = sys.modules[__name__]
    by_name = dumps(Point(1))
    cloudpickle.register_pickle_by_value(module)
    try:
        assert is_by_value_module(__name__)
        assert len(dumps(Point(1))) > 3 * len(by_name)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert dumps(Point(1)) == by_name


def test_lambdas_and_refusals() -> None:
    """What pickle refuses goes to cloudpickle; what both refuse raises."""
    assert pickle.loads(dumps(lambda x: x + 1))(1) == 2
    with pytest.raises(TypeError, match="generator"):
        dumps(i for i in ())


def test_has_globals() -> None:
    """Plain data cannot fail to unpickle, instances can."""
    assert not has_globals(dumps([147, "a"]))
    assert has_globals(dumps([Point(1)]))
