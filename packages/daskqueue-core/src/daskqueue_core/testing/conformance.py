"""The suite that every queue passes: what `Producer`, `Consumer` and `Admin` promise, apart from any implementation.

    class TestMyQueue(QueueConformance):
        def make_queue(self, clock, **options):
            return MyQueue(clock=clock, **options)

pytest collects the subclass; each test gets a queue of its own. A queue whose methods are asynchronous or remote comes
in behind a thin synchronous facade. One with a clock of its own sets `manual_clock = False`, and what needs time to be
advanced, or options, is skipped. In a `conftest.py`, `pytest.register_assert_rewrite("daskqueue_core.testing")` makes
failures speak.

Not here: what only one kind of queue promises (waiting, durability, hand-over). The chapters are `suite_*`.
"""

from __future__ import annotations

from daskqueue_core.testing.suite_control import ControlRules
from daskqueue_core.testing.suite_leases import LeaseRules
from daskqueue_core.testing.suite_names import NameRules
from daskqueue_core.testing.suite_options import OptionRules
from daskqueue_core.testing.suite_outcomes import OutcomeRules
from daskqueue_core.testing.suite_puts import PutRules
from daskqueue_core.testing.suite_retries import RetryRules
from daskqueue_core.testing.suite_room import RoomRules

__all__ = ["QueueConformance"]


class QueueConformance(PutRules, OptionRules, RoomRules, LeaseRules, OutcomeRules, RetryRules, NameRules, ControlRules):
    """Subclass it, name the subclass `Test...`, and say how a queue is made."""
