"""What a queue says of itself."""

from daskqueue_core.stats import QueueStats


def test_empty() -> None:
    """Everything is zero but the name."""
    assert not any(QueueStats("q")[1:])


def test_unfinished() -> None:
    """Messages without an outcome: ready and delivered ones."""
    assert QueueStats("q", puts=10, ready=3, delivered=2, failed=1, finished=5).unfinished == 5


def test_travels_as_a_tuple() -> None:
    """The wire sends the fields in order."""
    stats = QueueStats("q", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    assert QueueStats(*tuple(stats)) == stats
