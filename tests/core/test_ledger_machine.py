"""The ledger against the dictionary model, on random walks."""

import pytest

from daskqueue_core.testing.ledger_machine import ledger_machine

TestLedgerMachine = ledger_machine().TestCase
TestLedgerMachine.pytestmark = [pytest.mark.timeout(900)]  # thousands of examples under the profile "properties"
