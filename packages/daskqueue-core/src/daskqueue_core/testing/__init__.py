"""What this package is tested with, for whoever builds on it."""

from daskqueue_core.testing.ledger_machine import ledger_machine
from daskqueue_core.testing.ledger_pair import LedgerPair
from daskqueue_core.testing.model import ModelLease, ModelLedger, ModelMessage

__all__ = ["LedgerPair", "ModelLease", "ModelLedger", "ModelMessage", "ledger_machine"]
