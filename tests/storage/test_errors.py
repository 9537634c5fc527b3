"""The error tree: drawn as it is, fields kept, and each message says what to do."""

import pickle
import re

import pytest

from daskqueue_storage import errors
from daskqueue_storage.errors import StorageError

MADE = [
    errors.NotAQueue("/q", "it is a file"),
    errors.FormatError("/q", "format 2.0"),
    errors.AccessError("/q", PermissionError(13, "Permission denied", "/q/FORMAT")),
    errors.UnsafeDirectory("/q", "belongs to user 7"),
    errors.LockedError("/q", "pid 1 on a", host="a", pid=1, age_s=2.0),
    errors.FencedError("/q", "epoch 1 was replaced by 2"),
    errors.WriterFailedError("/q", "the disk refused"),
    errors.DiskFullError("/q", "no room"),
    errors.DamagedRecord("/q", 64, 5, 7),
    errors.DamagedLog("/q", "a report"),
    errors.OffsetError("/q", 5, 7, "it was truncated"),
    errors.RecordTooLarge("/q", 5, 4, "bytes"),
    errors.ReadOnlyError("/q"),
    errors.ClosedError("/q"),
]
ADVICE = re.compile(r"open|try again|choose|go on|next one|nothing was changed|split it")


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_each_says_where_and_what_to_do(error: StorageError) -> None:
    """The path is a field and in the text, and so is advice."""
    assert error.path == "/q"
    assert "/q" in str(error)
    assert ADVICE.search(str(error))


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_each_travels_between_processes(error: StorageError) -> None:
    """Pickled and back it is the same class, text and fields."""
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), there.__dict__) == (type(error), str(error), error.__dict__)
    assert getattr(there, "errno", None) == getattr(error, "errno", None)


def test_the_tree_is_drawn_completely() -> None:
    """Every class is in the picture at the top of the module, and made above."""
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) | {"StorageError"}
    assert drawn == set(errors.__all__)
    assert {type(error).__name__ for error in MADE} == drawn - {"StorageError"}


def test_python_has_words_for_some() -> None:
    """A missing offset is a LookupError, a batch too large a ValueError, no permission an OSError with its number."""
    assert issubclass(errors.AccessError, OSError)
    assert errors.AccessError("/q", PermissionError(13, "Permission denied")).errno == 13
    assert issubclass(errors.OffsetError, LookupError)
    assert issubclass(errors.RecordTooLarge, ValueError)
