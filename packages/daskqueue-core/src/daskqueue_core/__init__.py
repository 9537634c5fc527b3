"""daskqueue-core: the scheduler-agnostic heart of daskqueue.

Messages and their status state machine, both sides of the queue protocol, the directory, pacing and balancing, and a
queue in memory. Pure: no clock, no I/O, no threads; they come in as arguments.
"""

from __future__ import annotations

from daskqueue_core.__about__ import __version__
from daskqueue_core.batch import Batch, Keep, Kind, OnDuplicate, Part
from daskqueue_core.consumer import LeaseBook, RequestNumbers
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.directory import Directory
from daskqueue_core.errors import DaskQueueError, IllegalMove
from daskqueue_core.ledger import Ledger
from daskqueue_core.outcomes import Failure, FailureReason, Outcome, Outcomes, Report
from daskqueue_core.pacing import Pacer
from daskqueue_core.producer import ProducerStream
from daskqueue_core.queue import Admin, Consumer, Demand, Known, Lease, Producer, Queue, TransientQueue
from daskqueue_core.states import MessageState
from daskqueue_core.stats import QueueStats

__all__ = [
    "Admin",
    "Batch",
    "Consumer",
    "DaskQueueError",
    "DeadLetter",
    "Demand",
    "Directory",
    "Failure",
    "FailureReason",
    "IllegalMove",
    "Keep",
    "Kind",
    "Known",
    "Lease",
    "LeaseBook",
    "Ledger",
    "MessageState",
    "OnDuplicate",
    "Outcome",
    "Outcomes",
    "Pacer",
    "Part",
    "Producer",
    "ProducerStream",
    "Queue",
    "QueueStats",
    "Report",
    "RequestNumbers",
    "TransientQueue",
    "__version__",
]
