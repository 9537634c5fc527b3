"""The queue under random clients, consumers and operators."""

import pytest

from daskqueue_core.testing.queue_machine import queue_machine

TestQueueMachine = queue_machine().TestCase
TestQueueMachine.pytestmark = [pytest.mark.timeout(900)]  # thousands of examples under the profile "properties"
