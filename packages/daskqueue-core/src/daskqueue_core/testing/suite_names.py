"""Conformance: tasks by name. Keys in use, waiting for somebody else's task, cancelling and forgetting."""

from __future__ import annotations

from typing import Any

from daskqueue_core.batch import Batch, Keep, OnDuplicate
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Outcome, Report
from daskqueue_core.queue import Accepted, Full, Known
from daskqueue_core.states import MessageState
from daskqueue_core.testing.suite_base import CLIENT, SECOND, SuiteBase, calls, ends, refused

__all__ = ["NameRules"]

OTHER = CLIENT + 1
HOUR = 3600 * SECOND
RETURN, RAISE, REPLACE = OnDuplicate.RETURN, OnDuplicate.RAISE, OnDuplicate.REPLACE


def keyed(first: int, *keys: str, **options: Any) -> Batch:
    """Calls with keys, whose results are kept."""
    return calls(first, len(keys), **{"keys": keys, "keep": Keep.KEEP, **options})


def value_at(outcome: Outcome) -> tuple[int, int]:
    """Of an outcome of one message: the client's number of it, and its position among the values."""
    [(position, stop)] = outcome.runs
    assert stop == position + 1
    return outcome.first + outcome.index + position, position


class NameRules(SuiteBase):
    """Names."""

    def heard(self, client: int = OTHER) -> list[tuple[int, str]]:
        """What `client` hears."""
        return ends(self.poll(client=client).outcomes)

    # -- keys in use: return

    def test_a_second_submit_waits_for_the_first(self) -> None:
        """Nothing is put, and both hear how it ends."""
        self.admit(keyed(0, "a", "b"))
        assert self.queue.admit([keyed(50, "b", client=OTHER)]) == Accepted(2, 0)
        assert self.queue.stats().puts == 2
        self.settle(self.lease(), Report(0, 2, b"values"))
        [outcome] = self.poll(client=OTHER).outcomes
        assert (value_at(outcome), bytes(outcome.values)) == ((50, 1), b"values")
        assert self.ended() == [(0, "ok"), (1, "ok")]

    def test_only_what_is_new_is_put(self) -> None:
        """Of a put with keys in use and others, the others; each submit hears of its own."""
        self.admit(keyed(0, "a", "c"))
        assert self.queue.admit([keyed(10, "a", "b", "c", "d", client=OTHER)]) == Accepted(2, 2)
        lease = self.lease()
        assert [key for part in lease.parts for key in part.keys] == ["a", "c", "b", "d"]
        assert [part.first for part in lease.parts] == [0, 11, 13]
        self.queue.ack(lease)
        assert sorted(self.heard()) == [(10, "ok"), (11, "ok"), (12, "ok"), (13, "ok")]

    def test_a_kept_success_is_returned(self) -> None:
        """At once, without running again."""
        self.admit(keyed(0, "a"))
        self.settle(self.lease(), Report(0, 1, b"value"))
        self.admit_nothing(keyed(7, "a", client=OTHER))
        [outcome] = self.poll(client=OTHER).outcomes
        assert (value_at(outcome)[0], bytes(outcome.values)) == (7, b"value")

    def test_twice_in_one_put(self) -> None:
        """The second waits for the first."""
        assert self.queue.admit([keyed(0, "a", "b", "a"), keyed(5, "b")]) == Accepted(0, 2)
        self.queue.ack(self.lease())
        assert sorted(self.ended()) == [(0, "ok"), (1, "ok"), (2, "ok"), (5, "ok")]

    def test_failures_are_run_again(self) -> None:
        """A key blocks while its message is unfinished or has succeeded, not otherwise; the old one is gone."""
        self.admit(keyed(0, "a", "b", "c", expires_at=1 << 62))
        lease = self.lease(1)
        self.queue.nack(lease, text="Boom")
        self.queue.cancel([(1, 2)])
        assert self.admit(keyed(10, "a", "b", client=OTHER)) == range(3, 5)
        stats = self.queue.stats()
        assert (stats.failed, stats.cancelled, self.queue.dead_letters()) == (0, 0, [])
        assert self.lease().ids == [2, 3, 4]

    def test_a_cancelled_one_that_still_runs(self) -> None:
        """Does not keep its key: the next submit is a new message."""
        self.admit(keyed(0, "a"))
        lease = self.lease()
        self.queue.cancel([(0, 1)])
        assert self.admit(keyed(1, "a")) == range(1, 2)
        assert self.queue.ack(lease) == 1
        assert self.lease().ids == [1]

    def test_a_keyed_put_is_admitted_once(self) -> None:
        """Repeated, it is answered as before; its own keys are not in its way."""
        put = [keyed(0, "a", "b"), keyed(5, "a")]
        first = self.queue.admit(put, producer=7, number=0)
        assert self.queue.admit(put, producer=7, number=0) == first == Accepted(0, 2)
        self.queue.ack(self.lease())
        assert sorted(self.ended()) == [(0, "ok"), (1, "ok"), (5, "ok")]

    def test_a_put_of_keys_in_use_takes_its_number(self) -> None:
        """The producer's next put is its next."""
        self.admit(keyed(0, "a"), producer=7, number=0)
        assert self.queue.admit([keyed(1, "a")], producer=7, number=1) == Accepted(1, 0)
        assert self.queue.admit([keyed(1, "a")], producer=7, number=1) == Accepted(1, 0)
        assert self.admit(keyed(2, "b"), producer=7, number=2) == range(1, 2)

    def test_keys_in_use_take_no_room(self) -> None:
        """A full queue admits what puts nothing."""
        self.timed_queue(maxsize=2)
        self.admit(keyed(0, "a", "b"))
        assert self.queue.admit([keyed(5, "a", "c")], producer=7) == Full(0)
        assert self.queue.admit([keyed(5, "a")], producer=7) == Accepted(2, 0)
        self.queue.ack(self.lease())
        assert sorted(self.ended()) == [(0, "ok"), (1, "ok"), (5, "ok")]

    # -- raise, replace

    def test_a_duplicate_is_refused(self) -> None:
        """It ends as such, the first goes on, and what is new is put."""
        self.admit(keyed(0, "a"))
        assert self.queue.admit([keyed(5, "a", "b", client=OTHER, on_duplicate=RAISE)]) == Accepted(1, 1)
        assert self.heard() == [(5, "DUPLICATE")]
        self.queue.ack(self.lease())
        assert self.ended() == [(0, "ok")]
        assert self.heard() == [(5, "DUPLICATE"), (6, "ok")]

    def test_a_duplicate_of_its_own_put(self) -> None:
        """Is one, too."""
        self.admit(keyed(0, "a", "a", on_duplicate=RAISE))
        assert self.ended() == [(1, "DUPLICATE")]

    def test_replace_what_waits(self) -> None:
        """The older one is cancelled."""
        self.admit(keyed(0, "a"))
        assert self.admit(keyed(5, "a", client=OTHER, on_duplicate=REPLACE)) == range(1, 2)
        assert self.ended() == [(0, "CANCELLED")]
        assert self.lease().ids == [1]

    def test_replace_what_runs(self) -> None:
        """Its holder is asked to stop; the key is the new one's at once."""
        self.admit(keyed(0, "a"))
        old = self.lease(owner="a")
        assert self.admit(keyed(5, "a", on_duplicate=REPLACE)) == range(1, 2)
        assert list(self.queue.heartbeat("a", {old.id: (0, 1)}, [], 0)) == [old.id]
        assert self.queue.release(old) == 1
        assert self.ended() == [(0, "CANCELLED")]
        assert [tuple(part.keys) for part in self.lease().parts] == [("a",)]

    def test_replace_a_result(self) -> None:
        """It is forgotten."""
        self.admit(keyed(0, "a"))
        self.queue.ack(self.lease())
        assert self.kept() == [(0, "ok")]
        assert self.admit(keyed(5, "a", on_duplicate=REPLACE)) == range(1, 2)
        assert (self.kept(), self.count(MessageState.ACKED)) == ([], 0)

    def test_replace_within_one_put(self) -> None:
        """The last one counts."""
        assert self.queue.admit([keyed(0, "a", "b", "a", on_duplicate=REPLACE)]) == Accepted(0, 2)
        assert self.ended() == [(0, "CANCELLED")]
        assert [part.first for part in self.lease().parts] == [1]

    # -- subscribe

    def test_wait_for_a_task_of_somebody_else(self) -> None:
        """By key or number; the outcome comes under the number that was asked for."""
        self.admit(keyed(0, "a", "b"))
        self.admit(calls(20, 5))
        answer = self.queue.subscribe(OTHER, 100, ["b", (CLIENT, 23), (CLIENT, 0)])
        assert list(answer) == [Known.KNOWN] * 3
        lease = self.lease()
        self.settle(lease, Report(0, 2, b"kept"))
        self.settle(lease, Report(2, 7, b"streamed"))
        outcomes = self.poll(client=OTHER).outcomes
        assert sorted(value_at(outcome) for outcome in outcomes) == [(100, 1), (101, 3), (102, 0)]

    def test_ask_for_what_has_ended(self) -> None:
        """What is kept is told at once, successes and failures."""
        self.admit(keyed(0, "a", "b", "c"))
        lease = self.lease(2)
        self.queue.ack(lease, [0])
        self.queue.nack(lease, [1], text="Boom")
        self.queue.cancel([(2, 3)])
        assert list(self.queue.subscribe(OTHER, 0, ["a", "b", "c"])) == [1, 1, 1]
        assert self.heard() == [(0, "ok"), (1, "Boom"), (2, "CANCELLED")]

    def test_subscribe_twice(self) -> None:
        """Asked again, it is told once."""
        self.admit(keyed(0, "a"))
        for _ in range(2):
            self.queue.subscribe(OTHER, 3, ["a"])
        self.queue.ack(self.lease())
        assert self.heard() == [(3, "ok")]

    def test_unknown_tasks(self) -> None:
        """Keys, clients and numbers that were never put."""
        self.admit(calls(0, 3))
        assert list(self.queue.subscribe(OTHER, 0, ["a", (OTHER, 0), (CLIENT, 3)])) == [Known.UNKNOWN] * 3

    def test_expired_tasks(self) -> None:
        """A number that was given and whose result is not kept; of a key nobody remembers as much."""
        self.admit(keyed(0, "a", "b"))
        self.admit(calls(10, 1))
        self.queue.ack(self.lease())
        self.queue.forget_tasks(["a"])
        names: list[TaskName] = [(CLIENT, 0), (CLIENT, 10), "a", (CLIENT, 1)]
        assert list(self.queue.subscribe(OTHER, 0, names)) == [Known.EXPIRED, Known.EXPIRED, Known.UNKNOWN, Known.KNOWN]

    def test_what_a_gone_client_was_given(self) -> None:
        """Nobody remembers that for ever."""
        queue = self.timed_queue(result_ttl=HOUR)
        self.admit(calls(0, 1))
        queue.ack(self.lease())
        self.poll(self.poll().cursor)
        assert list(queue.subscribe(OTHER, 0, [(CLIENT, 0)])) == [Known.EXPIRED]
        self.wait(HOUR)
        queue.tick()
        assert list(queue.subscribe(OTHER, 0, [(CLIENT, 0)])) == [Known.UNKNOWN]

    def test_the_outcome_of_a_later_life(self) -> None:
        """Who subscribes after a requeue hears of it."""
        self.admit(keyed(0, "a"))
        self.fail(self.lease(), "Boom")
        self.queue.subscribe(OTHER, 0, ["a"])
        self.queue.requeue(["a"])
        self.queue.subscribe(OTHER, 1, ["a"])
        self.queue.ack(self.lease())
        outcomes = self.poll(client=OTHER).outcomes
        assert ends(outcomes) == [(0, "Boom"), (1, "ok")]
        assert [outcome.life for outcome in outcomes] == [0, 1]

    def test_items_can_be_waited_for(self) -> None:
        """By the queue's own number; they end without a value."""
        self.queue.put_many([b"a", b"b"])
        assert list(self.queue.subscribe(OTHER, 0, [(0, 1), (0, 5)])) == [Known.KNOWN, Known.UNKNOWN]
        self.queue.ack(self.lease())
        assert self.heard() == [(0, "ok")]

    # -- cancel and forget by name

    def test_cancel_by_name(self) -> None:
        """Whoever submitted it; those that have ended by it are said as they were asked for."""
        self.admit(keyed(0, "a", "b", "c"))
        self.lease(1)
        ended = self.queue.cancel_named(["a", "b", (CLIENT, 2), "nobody"])
        assert sorted(map(str, ended)) == sorted(["b", str((CLIENT, 2))])
        assert self.ended() == [(1, "CANCELLED"), (2, "CANCELLED")]
        assert list(self.queue.cancel_named(["b"])) == []

    def test_a_follower_cancels_for_itself(self) -> None:
        """Who submitted second does not stop the first's task, but does not wait for it any more."""
        self.admit(keyed(0, "a"))
        self.queue.admit([keyed(5, "a", "b", client=OTHER)])
        ended = self.queue.cancel_tasks(OTHER, [(5, 0, 2)])
        assert sorted(tuple(task) for task in ended) == [(5, 0, 1), (5, 1, 2)]
        self.queue.ack(self.lease())
        assert self.ended() == [(0, "ok")]
        assert sorted(self.heard()) == [(5, "CANCELLED"), (6, "CANCELLED")]

    def test_cancel_of_a_batch_with_holes(self) -> None:
        """Positions count in the batch that the client sent, whatever of it was put."""
        self.admit(keyed(0, "b"))
        self.queue.admit([keyed(10, "a", "b", "c", client=OTHER, on_duplicate=RAISE)])
        ended = self.queue.cancel_tasks(OTHER, [(10, 0, 3)])
        assert [tuple(task) for task in ended] == [(10, 0, 1), (10, 2, 3)]

    def test_forget_by_name(self) -> None:
        """Successes; a later submit runs again."""
        self.admit(keyed(0, "a", "b"))
        self.queue.ack(self.lease(1))
        assert self.queue.forget_tasks(["a", "b", "c", (CLIENT, 0)]) == 1
        assert self.admit(keyed(5, "a")) == range(2, 3)

    def test_keys_of_results_that_expired(self) -> None:
        """Are free."""
        queue = self.timed_queue(result_ttl=HOUR)
        self.admit(keyed(0, "a"))
        queue.ack(self.lease())
        self.poll(self.poll().cursor)
        self.wait(HOUR)
        queue.tick()
        assert self.admit(keyed(5, "a")) == range(1, 2)

    def test_keys_without_a_kept_result(self) -> None:
        """A key lasts as long as its message is known."""
        self.admit(keyed(0, "a", keep=Keep.STREAM))
        self.queue.ack(self.lease())
        assert self.admit(keyed(5, "a")) == range(1, 2)

    def test_nobody_is_told_of_an_item(self) -> None:
        """A duplicate that nobody waits for just is not put."""
        self.admit(keyed(0, "a"))
        for way in (RETURN, RAISE):
            self.admit_nothing(keyed(5, "a", keep=Keep.NONE, on_duplicate=way))
        self.queue.ack(self.lease())
        assert self.ended() == [(0, "ok")]

    def test_one_key_for_each_message(self) -> None:
        """Or none: a mistake otherwise."""
        refused(self.queue.admit, [calls(0, 2, keys=("a",))])

    # -- inside

    def admit_nothing(self, batch: Batch) -> None:
        """A put of which nothing is new."""
        answer = self.queue.admit([batch])
        assert isinstance(answer, Accepted), answer
        assert answer.count == 0
