"""A client's side of one queue: numbers, the window, what it hears once, what it puts again."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskqueue_core.batch import Batch, Keep, lengths_column
from daskqueue_core.outcomes import Outcome, Outcomes
from daskqueue_core.producer import MAX_RESENT, LostBatch, ProducerStream, PutRequest
from daskqueue_core.queue import TransientQueue
from daskqueue_core.testing import ManualClock


@pytest.fixture
def stream() -> ProducerStream:
    """A stream whose producer ids are 100, 101, ..."""
    return new_stream()


def new_stream(window: int = 16, maxsize: int = 0) -> ProducerStream:
    """A stream with a window, into a queue of that size."""
    ids = count(100)
    return ProducerStream("life-0", lambda: next(ids), window=window, maxsize=maxsize)


def calls(first: int, n: int = 1, **options: object) -> Batch:
    """A block of calls."""
    return Batch(n, b"block", client=1, first=first, keep=Keep.STREAM)._replace(**options)


def items(n: int, body: bytes = b"items") -> Batch:
    """Items, which nobody reports back."""
    return Batch(n, body)


def put(stream: ProducerStream) -> PutRequest:
    """The next put, which there must be."""
    request = stream.next_put()
    assert request is not None
    return request


def known(stream: ProducerStream) -> ProducerStream:
    """The queue knows this producer: its first put was accepted and has ended."""
    stream.offer(calls(10**6))
    stream.accepted(put(stream))
    stream.receive(answer(Outcome(10**6, 0, 1)))
    return stream


def put_all(stream: ProducerStream) -> list[PutRequest]:
    """All puts that can go out."""
    return list(iter(stream.next_put, None))


def firsts(request: PutRequest) -> list[int]:
    """The first numbers of its batches."""
    return [batch.first for batch in request.batches]


def accept_all(stream: ProducerStream) -> list[int]:
    """All puts, each accepted before the next: the first numbers of their batches."""
    heard: list[int] = []
    while (request := stream.next_put()) is not None:
        heard += firsts(request)
        stream.accepted(request)
    return heard


def answer(*outcomes: Outcome, number: int = 1, epoch: str = "life-0:0") -> Outcomes:
    """What a poll brings."""
    return Outcomes((epoch, number), outcomes)


def said_again(stream: ProducerStream) -> list[tuple[int, int]]:
    """All that is put next, as numbers."""
    batches = [batch for request in put_all(stream) for batch in request.batches]
    return [(batch.first, batch.first + batch.count) for batch in batches]


# -- puts


def test_a_put_ends_where_options_change(stream: ProducerStream) -> None:
    """Their order stays."""
    known(stream)
    options: list[dict[str, object]] = [{}, {}, {"priority": 1}, {"priority": 1}, {}, {"keys": ("a",)}, {"resent": 2}]
    for n, each in enumerate(options):
        stream.offer(calls(n)._replace(**each))
    assert [firsts(request) for request in put_all(stream)] == [[0, 1], [2, 3], [4], [5], [6]]


def test_nothing_to_put(stream: ProducerStream) -> None:
    """A new stream is idle."""
    assert (stream.next_put(), stream.idle, stream.in_flight, stream.pending) == (None, True, 0, 0)


def test_puts_are_numbered(stream: ProducerStream) -> None:
    """0, 1, ... under one id, batches in the order they were offered."""
    stream.offer(calls(0))
    stream.offer(calls(1))
    first = put(stream)
    stream.accepted(first)
    stream.offer(calls(2))
    second = put(stream)
    assert (first.producer, first.number, firsts(first)) == (100, 0, [0, 1])
    assert (second.producer, second.number, firsts(second)) == (100, 1, [2])


def test_the_first_put_goes_alone(stream: ProducerStream) -> None:
    """The queue must know the producer before a later put can wait there for an earlier one. So with each id."""
    for life in range(2):
        stream.offer(calls(2 * life))
        first = put(stream)
        stream.offer(calls(2 * life + 1))
        assert stream.next_put() is None
        assert stream.accepted(first)
        assert stream.accepted(put(stream))
        stream.queue_lost(f"life-{life + 1}", resubmit=False)


def test_the_window() -> None:
    """So many puts may be unanswered; an answer to any makes room."""
    stream = known(new_stream(window=2))
    requests = []
    for n in range(3):
        stream.offer(calls(n))
        requests += put_all(stream)
    assert (len(requests), stream.in_flight) == (2, 2)
    assert stream.accepted(requests[1])
    assert firsts(put(stream)) == [2]
    assert stream.next_put() is None


def test_a_put_has_so_many_batches(stream: ProducerStream) -> None:
    """64, and the others go into the next."""
    known(stream)
    for n in range(65):
        stream.offer(calls(n))
    assert [len(request.batches) for request in put_all(stream)] == [64, 1]


def test_a_put_has_so_many_bytes(stream: ProducerStream) -> None:
    """It closes at two megabytes, but one batch goes however big."""
    known(stream)
    for n, mib in enumerate((1, 1, 1, 5, 1)):
        stream.offer(calls(n, body=b"x" * (mib << 20)))
    assert [firsts(request) for request in put_all(stream)] == [[0, 1], [2, 3], [4]]


def test_idle_when_all_is_accepted(stream: ProducerStream) -> None:
    """Not merely sent; pending until the outcome is in."""
    stream.offer(calls(0))
    assert not stream.idle
    request = put(stream)
    assert not stream.idle
    assert stream.accepted(request)
    assert (stream.idle, stream.pending) == (True, 1)


def test_unaccepted_bytes(stream: ProducerStream) -> None:
    """Offered and sent ones, until the answer."""
    stream.offer(calls(0))
    stream.offer(calls(1, body=b"longer"))
    assert stream.unaccepted_bytes == 11
    request = put(stream)
    stream.offer(calls(2))
    assert stream.unaccepted_bytes == 16
    stream.accepted(request)
    assert stream.unaccepted_bytes == 5


def test_a_repeated_answer(stream: ProducerStream) -> None:
    """Counts once."""
    stream.offer(items(3))
    request = put(stream)
    assert stream.accepted(request)
    assert not stream.accepted(request)
    assert stream.items_accepted == 3


def test_items_are_counted(stream: ProducerStream) -> None:
    """Only those nobody reports back, when they are accepted."""
    stream.offer(items(3))
    stream.offer(calls(0, 5))
    stream.offer(items(4))
    request = put(stream)
    assert (stream.items_accepted, stream.pending) == (0, 1)
    stream.accepted(request)
    assert stream.items_accepted == 7


# -- unknown producer


def test_an_evicted_producer_takes_a_fresh_id() -> None:
    """What was never seen accepted goes again, in order, before what was not sent yet; the rest does not."""
    stream = known(new_stream(window=3))
    requests = []
    for n in range(4):
        stream.offer(calls(n))
        stream.offer(calls(n + 10))
        requests += put_all(stream)
    stream.accepted(requests[0])
    assert stream.unknown(requests[2])
    again = put(stream)
    assert (again.producer, again.number, firsts(again)) == (101, 0, [1, 11, 2, 12, 3, 13])
    assert stream.next_put() is None
    assert stream.pending == 8


def test_answers_to_the_old_id(stream: ProducerStream) -> None:
    """They mean nothing any more: neither accepted nor unknown a second time."""
    known(stream)
    stream.offer(items(1))
    old = put(stream)
    stream.offer(items(1))
    other = put(stream)
    assert stream.unknown(old)
    assert not stream.unknown(other)
    assert not stream.accepted(old)
    assert (stream.items_accepted, put(stream).producer) == (0, 101)


def test_unknown_after_accepted(stream: ProducerStream) -> None:
    """A late refusal of a put that was answered changes nothing."""
    stream.offer(calls(0))
    request = put(stream)
    stream.accepted(request)
    assert not stream.unknown(request)
    assert stream.idle


def test_renumbering_keeps_the_bytes(stream: ProducerStream) -> None:
    """What is offered again counts as before."""
    stream.offer(calls(0))
    request = put(stream)
    before = stream.unaccepted_bytes
    stream.unknown(request)
    assert stream.unaccepted_bytes == before
    put_all(stream)
    assert stream.unaccepted_bytes == before


# -- outcomes


def test_outcomes_go_to_their_sink(stream: ProducerStream) -> None:
    """With the sink's index of the outcome's first message."""
    sink = object()
    stream.offer(calls(10, 5), sink, shift=100)
    outcome = Outcome(10, 2, 3)
    [news] = stream.receive(answer(outcome))
    assert (news.sink, news.shift, news.runs, news.outcome) == (sink, 102, ((0, 3),), outcome)
    assert stream.pending == 1
    [news] = stream.receive(answer(Outcome(10, 0, 2)))
    assert (news.shift, news.runs, stream.pending) == (100, ((0, 2),), 0)


def test_which_puts_are_alone(stream: ProducerStream) -> None:
    """Those of one batch whose outcomes are all that is awaited."""
    known(stream)
    stream.offer(calls(0))
    first = put(stream)
    assert stream.is_alone(first)
    stream.offer(calls(1))
    second = put(stream)
    assert not stream.is_alone(first)
    assert not stream.is_alone(second)
    stream.accepted(first)
    stream.receive(answer(Outcome(0, 0, 1)))
    assert stream.is_alone(second)
    stream.accepted(second)
    stream.offer(items(1))
    assert not stream.is_alone(put(stream))


def test_the_cursor_never_goes_back(stream: ProducerStream) -> None:
    """Answers may overtake each other; another epoch counts anew."""
    for cursor, after in (("a", 5), ("a", 5)), (("a", 3), ("a", 5)), (("b", 1), ("b", 1)):
        stream.receive(Outcomes(cursor, ()))
        assert stream.cursor == after


def test_receiving_moves_the_cursor(stream: ProducerStream) -> None:
    """The next poll acknowledges."""
    assert stream.cursor is None
    stream.receive(answer(number=5))
    assert stream.cursor == ("life-0:0", 5)


def test_an_outcome_is_news_once(stream: ProducerStream) -> None:
    """Sent again, whole or in part, it is dropped."""
    stream.offer(calls(0, 4))
    assert len(stream.receive(answer(Outcome(0, 0, 2)))) == 1
    assert stream.receive(answer(Outcome(0, 0, 2))) == []
    [news] = stream.receive(answer(Outcome(0, 0, 4)))
    assert news.runs == ((2, 4),)
    assert stream.receive(answer(Outcome(0, 0, 4))) == []
    assert stream.pending == 0


def test_the_fresh_part_of_an_outcome(stream: ProducerStream) -> None:
    """Runs are relative to the outcome, so that its values can be picked."""
    stream.offer(calls(0, 10))
    stream.receive(answer(Outcome(0, 4, 2)))
    [news] = stream.receive(answer(Outcome(0, 2, 6)))
    assert (news.shift, news.runs) == (2, ((0, 2), (4, 6)))


def test_a_partly_accepted_outcome(stream: ProducerStream) -> None:
    """Only what the queue accepted has ended."""
    stream.offer(calls(0, 10))
    [news] = stream.receive(answer(Outcome(0, 2, 8, ((0, 1), (5, 8)))))
    assert news.runs == ((0, 1), (5, 8))
    [news] = stream.receive(answer(Outcome(0, 0, 10)))
    assert news.runs == ((0, 2), (3, 7))
    assert stream.pending == 0


def test_outcomes_of_others(stream: ProducerStream) -> None:
    """What is not pending is dropped; the rest of the answer counts."""
    stream.offer(calls(5))
    assert [news.shift for news in stream.receive(answer(Outcome(99, 0, 1), Outcome(5, 0, 1)))] == [0]


def test_an_outcome_before_its_put_was_answered(stream: ProducerStream) -> None:
    """News may overtake the answer to the put."""
    stream.offer(calls(0))
    request = put(stream)
    assert len(stream.receive(answer(Outcome(0, 0, 1)))) == 1
    assert stream.accepted(request)
    assert (stream.idle, stream.pending) == (True, 0)


def test_news_without_a_poll(stream: ProducerStream) -> None:
    """What is known otherwise counts as heard, and the cursor stays."""
    stream.offer(calls(0, 3))
    [news] = stream.absorb([Outcome(0, 1, 1)])
    assert (news.shift, news.runs, stream.cursor) == (1, ((0, 1),), None)
    assert stream.absorb([Outcome(0, 1, 1)]) == []
    [news] = stream.receive(answer(Outcome(0, 0, 3)))
    assert news.runs == ((0, 1), (2, 3))


def test_where_a_task_is(stream: ProducerStream) -> None:
    """The batch of a number, and its index there, as the queue knows it: also after it was put again in parts."""
    stream.offer(calls(10, 5))
    stream.offer(calls(15, 5))
    assert [stream.locate(number) for number in (9, 10, 14, 15, 20)] == [None, (10, 0), (10, 4), (15, 0), None]
    put(stream)
    stream.receive(answer(Outcome(10, 2, 1), Outcome(15, 0, 5)))
    stream.queue_lost("life-1", resubmit=True)
    assert [stream.locate(number) for number in (11, 12, 14, 15)] == [(10, 1), None, (13, 1), None]


def test_what_is_pending_of_a_sink(stream: ProducerStream) -> None:
    """Its batches, or those of all."""
    sinks: list[list[int]] = [[], []]  # equal, but not the same
    for n in range(3):
        stream.offer(calls(10 * n, 5), sinks[n % 2])
    assert stream.pending_of(sinks[0]) == [(0, 5), (20, 5)]
    stream.receive(answer(Outcome(0, 0, 5)))
    assert stream.pending_of(sinks[0]) == [(20, 5)]
    assert stream.pending_of(None) == [(10, 5), (20, 5)]


# -- full queues


def test_a_put_fits_into_the_queue() -> None:
    """Batches travel together as long as an empty queue would take them; one that never fits goes alone."""
    stream = known(new_stream(maxsize=10))
    for n, size in enumerate((4, 6, 1, 9, 1, 25, 3)):
        stream.offer(calls(100 * n, size))
    puts = put_all(stream)
    assert [[batch.count for batch in request.batches] for request in puts] == [[4, 6], [1, 9], [1], [25], [3]]


def test_a_refused_put_is_lost_and_those_after_it_go_again() -> None:
    """Under a new id, since its number stays free; what came before it is not concerned."""
    stream = known(new_stream(maxsize=10))
    sinks = [object() for _ in range(4)]
    for n, sink in enumerate(sinks):
        stream.offer(calls(10 * n, 10), sink, shift=100 * n)
    before, refused, *_ = put_all(stream)
    stream.accepted(before)
    assert stream.refused(refused) == [LostBatch(sinks[1], 100, ((0, 10),), 0)]
    assert stream.pending == 3
    again = put(stream)
    assert (again.producer, again.number, firsts(again)) == (101, 0, [20])
    stream.accepted(again)
    assert firsts(put(stream)) == [30]
    [news] = stream.receive(answer(Outcome(0, 0, 10)))
    assert news.sink is sinks[0]


def test_refused_with_what_was_not_sent() -> None:
    """What waits for the window comes after what was under way."""
    stream = known(new_stream(window=2))
    requests = []
    for n in range(4):
        stream.offer(calls(n))
        requests += put_all(stream)
    assert [firsts(request) for request in requests] == [[0], [1]]
    stream.refused(requests[0])
    assert firsts(put(stream)) == [1, 2, 3]


def test_the_first_of_all_is_refused(stream: ProducerStream) -> None:
    """Nothing of the old id is left; the stream goes on."""
    stream.offer(calls(0, 3), "sink")
    first = put(stream)
    stream.offer(calls(3, 2), "sink", shift=3)
    assert stream.refused(first) == [LostBatch("sink", 0, ((0, 3),), 0)]
    again = put(stream)
    assert (again.producer, again.number, firsts(again)) == (101, 0, [3])
    assert stream.accepted(again)
    assert stream.pending == 1


def test_a_refusal_of_several_batches_and_items(stream: ProducerStream) -> None:
    """All that travelled in it; items have nobody who hears of it."""
    known(stream)
    stream.offer(calls(0, 2), "a", shift=5)
    stream.offer(items(3))
    stream.offer(calls(2, 2), "b")
    assert stream.refused(put(stream)) == [
        LostBatch("a", 5, ((0, 2),), 0),
        LostBatch(None, 0, ((0, 3),), 0),
        LostBatch("b", 0, ((0, 2),), 0),
    ]
    assert (stream.pending, stream.idle, stream.unaccepted_bytes) == (0, True, 0)


def test_refused_after_a_part_had_ended_otherwise(stream: ProducerStream) -> None:
    """Only what is unfinished is lost: a batch put again keeps what it has heard."""
    stream.offer(calls(0, 4), "sink", shift=10)
    refused = put(stream)
    stream.absorb([Outcome(0, 1, 2)])
    assert stream.refused(refused) == [LostBatch("sink", 10, ((0, 1), (3, 4)), 0)]


def test_which_puts_are_awaited(stream: ProducerStream) -> None:
    """Until they are answered, or put otherwise: who repeats one asks before."""
    stream.offer(calls(0))
    first = put(stream)
    assert stream.awaits(first)
    stream.accepted(first)
    assert not stream.awaits(first)
    stream.offer(calls(1))
    stream.offer(calls(2, priority=1))
    second, third = put_all(stream)
    stream.refused(second)
    assert not stream.awaits(second)
    assert not stream.awaits(third)
    again = put(stream)
    assert firsts(again) == firsts(third)
    assert stream.awaits(again)


def test_a_refusal_that_is_not_news(stream: ProducerStream) -> None:
    """Of a put that was answered, or belongs to an older id or life."""
    known(stream)
    stream.offer(calls(0))
    done = put(stream)
    stream.accepted(done)
    stream.offer(calls(1))
    old = put(stream)
    stream.queue_lost("life-1", resubmit=True)
    assert stream.refused(done) == stream.refused(old) == []
    assert said_again(stream) == [(0, 1), (1, 2)]


def test_no_put_is_refused_before_one_that_has_no_answer(stream: ProducerStream) -> None:
    """That one may be in the queue, or be tried again: nothing changes."""
    known(stream)
    for n in range(3):
        stream.offer(calls(n, priority=n), n)
    first, second, third = put_all(stream)
    assert [stream.is_first(request) for request in (first, second, third)] == [True, False, False]
    with pytest.raises(ValueError, match=r"put 2 into queue life-0 cannot be refused before put 1 is answered"):
        stream.refused(second)
    assert all(map(stream.awaits, (first, second, third)))
    stream.accepted(first)
    assert not stream.is_first(first)
    assert stream.refused(second) == [LostBatch(1, 0, ((0, 1),), 0)]
    assert firsts(put(stream)) == [2]


@given(st.lists(st.sampled_from(["offer", "accept", "refuse", "overtake", "unknown"]), max_size=60), st.data())
def test_what_is_refused_is_lost_once_and_nothing_else(steps: list[str], data: st.DataObject) -> None:
    """In whatever order answers come: each batch is accepted or lost, and those accepted are in order."""
    stream = new_stream(window=4)
    sent: list[PutRequest] = []
    accepted: list[int] = []
    lost: list[int] = []
    offered = 0
    for step in [*steps, *["accept"] * len(steps)]:
        sent = [request for request in sent if stream.awaits(request)] + put_all(stream)
        if step == "offer":
            stream.offer(calls(offered, priority=offered), offered)
            offered += 1
        elif not sent:
            continue
        elif step == "refuse":
            lost += [batch.sink for batch in stream.refused(sent[0])]
        elif step == "unknown":
            assert stream.unknown(sent[0])
        elif step == "accept":
            accepted += firsts(sent[0])
            assert stream.accepted(sent[0])
        elif len(sent) > 1:
            with pytest.raises(ValueError, match="cannot be refused before"):
                stream.refused(data.draw(st.sampled_from(sent[1:])))
    assert stream.idle
    assert accepted == sorted(accepted)
    assert sorted(accepted + lost) == list(range(offered))


# -- what is taken back


SINKS = ["sink 0", "sink 1", "sink 2"]


def waiting(*sizes: int) -> ProducerStream:
    """A stream with batches of these sizes that wait behind a put without an answer; each with a sink of its own."""
    stream = known(new_stream(window=1))
    stream.offer(calls(900), "under way")
    put(stream)
    first = 0
    for n, size in enumerate(sizes):
        stream.offer(calls(first, size), SINKS[n], shift=100 * n)
        first += size
    return stream


def test_one_is_taken_back() -> None:
    """Its neighbours go out in their places, and their outcomes find their sink."""
    stream = waiting(2, 10, 3)
    assert stream.take_back(2, 4, 5) == LostBatch("sink 1", 100, ((4, 5),), 0)
    assert stream.pending == 5
    assert stream.locate(6) is None
    stream.accepted(PutRequest(100, 1, ()))
    went = [(batch.first, batch.count, batch.offset) for batch in put(stream).batches]
    assert went == [(0, 2, 0), (2, 4, 0), (7, 5, 5), (12, 3, 0)]
    [news] = stream.receive(answer(Outcome(7, 0, 5)))
    assert (news.sink, news.shift) == ("sink 1", 105)


def test_ends_are_taken_back() -> None:
    """The first, the last, a whole batch."""
    stream = waiting(3, 3, 1)
    assert stream.take_back(0, 0, 1) == LostBatch("sink 0", 0, ((0, 1),), 0)
    assert stream.take_back(3, 2, 3) == LostBatch("sink 1", 100, ((2, 3),), 0)
    assert stream.take_back(6, 0, 1) == LostBatch("sink 2", 200, ((0, 1),), 0)
    assert stream.pending_of(None) == [(900, 1), (1, 2), (3, 2)]


def test_taken_back_twice() -> None:
    """It is not there any more."""
    stream = waiting(3)
    assert stream.take_back(0, 1, 2) is not None
    assert stream.locate(1) is None
    assert stream.take_back(0, 1, 2) == LostBatch("sink 0", 0, (), 0)


def test_what_was_sent_is_not_taken_back() -> None:
    """It may be in the queue: `under_way` says so until the put is answered."""
    stream = waiting(3)
    assert stream.under_way == {900}
    assert stream.take_back(900, 0, 1) is None
    assert stream.take_back_all("under way") == []
    stream.accepted(PutRequest(100, 1, ()))
    assert stream.under_way == set()
    assert stream.take_back(900, 0, 1) is None


def test_order_after_one_was_taken_back() -> None:
    """What is put again after a loss keeps the order of submission."""
    stream = waiting(3, 3)
    stream.take_back(0, 1, 2)
    stream.accepted(PutRequest(100, 1, ()))
    put(stream)
    stream.queue_lost("life-1", resubmit=True)
    assert said_again(stream) == [(900, 901), (0, 1), (2, 3), (3, 6)]


def test_a_sink_is_taken_back() -> None:
    """All that was not sent of it; None: of everybody, but not items, which have nobody to tell."""
    stream = waiting(3, 3, 3)
    stream.offer(items(5))
    assert stream.take_back_all(SINKS[1]) == [LostBatch("sink 1", 100, ((0, 3),), 0)]
    assert stream.take_back_all(SINKS[1]) == []
    assert stream.take_back_all(None) == [LostBatch("sink 0", 0, ((0, 3),), 0), LostBatch("sink 2", 200, ((0, 3),), 0)]
    assert stream.pending_of(None) == [(900, 1)]
    stream.accepted(PutRequest(100, 1, ()))
    assert [batch.count for batch in put(stream).batches] == [5]


# -- losses


def test_a_lost_queue_starts_a_new_life(stream: ProducerStream) -> None:
    """Another uuid, id and cursor; old answers mean nothing."""
    stream.offer(calls(0))
    old = put(stream)
    stream.receive(answer(number=3))
    assert stream.queue_lost("life-1", resubmit=True) == []
    assert (stream.uuid, stream.cursor, stream.in_flight) == ("life-1", None, 0)
    again = put(stream)
    assert (again.producer, again.number) == (101, 0)
    assert not stream.accepted(old)
    assert not stream.unknown(old)
    assert stream.in_flight == 1
    assert stream.accepted(again)


def test_unfinished_ones_are_put_again_in_order() -> None:
    """Accepted, unanswered and never sent: in the order of submission, the finished ones not."""
    stream = new_stream(window=2)
    for n in range(4):
        stream.offer(calls(10 * n, 10))
        for request in put_all(stream)[:1]:
            if n < 2:
                stream.accepted(request)
    stream.receive(answer(Outcome(0, 0, 10)))
    stream.offer(calls(40, 10))
    assert stream.queue_lost("life-1", resubmit=True) == []
    assert said_again(stream) == [(10, 20), (20, 30), (30, 40), (40, 50)]
    assert stream.pending == 4


def test_order_over_several_losses() -> None:
    """What was sent comes before what was not, also when it is lost a second time."""
    stream = new_stream(window=1)
    for n in range(3):
        stream.offer(calls(n))
        stream.next_put()
    for life in range(1, 3):
        stream.queue_lost(f"life-{life}", resubmit=True)
        assert accept_all(stream) == [0, 1, 2]


def test_order_when_only_a_part_was_sent() -> None:
    """The first was sent and lost, the second never left: after two losses they are still in order."""
    stream = new_stream(window=1)
    stream.offer(calls(0))
    put(stream)
    stream.offer(calls(1))
    stream.queue_lost("life-1", resubmit=True)
    assert firsts(put(stream)) == [0, 1]
    stream.queue_lost("life-2", resubmit=True)
    assert accept_all(stream) == [0, 1]


def test_lost_twice_before_it_was_sent(stream: ProducerStream) -> None:
    """It is put once, and counted as put again once."""
    stream.offer(calls(0, 5))
    put(stream)
    stream.queue_lost("life-1", resubmit=True)
    stream.queue_lost("life-2", resubmit=True)
    [batch] = put(stream).batches
    assert batch.resent == 1
    assert stream.next_put() is None


def test_holes_in_a_block(stream: ProducerStream) -> None:
    """Each unfinished run goes as a batch of its own, over the same block."""
    sink = object()
    stream.offer(calls(100, 10, offset=1_000), sink, shift=50)
    put(stream)
    stream.receive(answer(Outcome(100, 2, 2), Outcome(100, 7, 1)))
    stream.queue_lost("life-1", resubmit=True)
    batches = put(stream).batches
    assert [(batch.first, batch.count, batch.offset) for batch in batches] == [
        (100, 2, 1_000),
        (104, 3, 1_004),
        (108, 2, 1_008),
    ]
    assert {(bytes(batch.body), batch.resent) for batch in batches} == {(b"block", 1)}
    [news] = stream.receive(answer(Outcome(104, 1, 2), epoch="life-1:0"))
    assert (news.sink, news.shift, news.runs) == (sink, 55, ((0, 2),))
    assert stream.pending == 3


def test_holes_in_singles(stream: ProducerStream) -> None:
    """Only the bodies that are needed."""
    bodies = [b"a", b"bb", b"ccc", b"d"]
    stream.offer(calls(0, 4, body=b"".join(bodies), lengths=lengths_column(bodies)))
    put(stream)
    stream.receive(answer(Outcome(0, 0, 1), Outcome(0, 2, 1)))
    stream.queue_lost("life-1", resubmit=True)
    assert [(batch.first, bytes(batch.body)) for batch in put(stream).batches] == [(1, b"bb"), (3, b"d")]


def test_holes_in_holes(stream: ProducerStream) -> None:
    """Parts of parts keep their place in the sink."""
    stream.offer(calls(0, 10), shift=100)
    put(stream)
    stream.receive(answer(Outcome(0, 0, 4)))
    stream.queue_lost("life-1", resubmit=True)
    put(stream)
    stream.receive(answer(Outcome(4, 2, 2), epoch="life-1:0"))
    stream.queue_lost("life-2", resubmit=True)
    assert [(batch.first, batch.count, batch.resent) for batch in put(stream).batches] == [(4, 2, 2), (8, 2, 2)]
    [news] = stream.receive(answer(Outcome(8, 0, 2), epoch="life-2:0"))
    assert news.shift == 108


def test_late_outcomes_of_the_old_life(stream: ProducerStream) -> None:
    """What they say of a message that is still pending under its number counts, the rest does no harm."""
    stream.offer(calls(0, 10))
    put(stream)
    stream.receive(answer(Outcome(0, 6, 4)))
    stream.queue_lost("life-1", resubmit=True)
    assert stream.receive(answer(Outcome(0, 6, 4))) == []
    [news] = stream.receive(answer(Outcome(0, 0, 10)))
    assert news.runs == ((0, 6),)
    assert stream.pending == 0


def test_put_again_too_often(stream: ProducerStream) -> None:
    """After the tenth time it is lost for good, with its sink."""
    sink = object()
    stream.offer(calls(0, 4), sink, shift=7)
    for life in range(MAX_RESENT):
        put(stream)
        assert stream.queue_lost(f"life-{life + 1}", resubmit=True) == []
    [batch] = put(stream).batches
    assert batch.resent == MAX_RESENT
    stream.receive(answer(Outcome(0, 1, 1)))
    assert stream.queue_lost("last", resubmit=True) == [LostBatch(sink, 7, ((0, 1), (2, 4)), MAX_RESENT)]
    assert (stream.pending, stream.next_put()) == (0, None)


def test_fail_rather_than_put_again() -> None:
    """What was sent is lost, what never left goes to the new life."""
    stream = new_stream(window=2)
    sinks = [object() for _ in range(3)]
    for n, sink in enumerate(sinks):
        stream.offer(calls(10 * n, 10), sink)
        for request in put_all(stream):
            if n == 0:
                stream.accepted(request)
    stream.offer(calls(30, 10))
    assert stream.in_flight == 2
    stream.receive(answer(Outcome(0, 0, 3)))
    assert stream.queue_lost("life-1", resubmit=False) == [
        LostBatch(sinks[0], 0, ((3, 10),), 0),
        LostBatch(sinks[1], 0, ((0, 10),), 0),
        LostBatch(sinks[2], 0, ((0, 10),), 0),
    ]
    assert said_again(stream) == [(30, 40)]
    assert stream.pending == 1


def test_items_in_unanswered_puts_go_again(stream: ProducerStream) -> None:
    """Accepted ones are gone with the queue, and counted; nobody lost a sink."""
    stream.offer(items(3, b"accepted"))
    stream.accepted(put(stream))
    stream.offer(items(4, b"sent"))
    put(stream)
    stream.offer(items(5, b"offered"))
    assert stream.queue_lost("life-1", resubmit=True) == []
    assert [batch.body for batch in put(stream).batches] == [b"sent", b"offered"]
    assert stream.items_accepted == 3


def test_items_have_no_numbers(stream: ProducerStream) -> None:
    """Items that were never sent are not taken for the task whose number is 0."""
    stream.offer(calls(0))
    stream.accepted(put(stream))
    stream.offer(items(5))
    stream.queue_lost("life-1", resubmit=True)
    assert [batch.keep for batch in put(stream).batches] == [Keep.STREAM, Keep.NONE]


def test_bytes_after_a_loss(stream: ProducerStream) -> None:
    """What goes again counts as not accepted."""
    stream.offer(calls(0))
    stream.accepted(put(stream))
    stream.offer(calls(1))
    assert stream.unaccepted_bytes == 5
    stream.queue_lost("life-1", resubmit=True)
    assert stream.unaccepted_bytes == 10
    stream.accepted(put(stream))
    assert (stream.unaccepted_bytes, stream.idle) == (0, True)


def test_abandon(stream: ProducerStream) -> None:
    """The pool is over: everything unfinished is handed back, and nothing more goes out."""
    sinks = [object(), object()]
    stream.offer(calls(0, 4), sinks[0], shift=1)
    put(stream)
    stream.receive(answer(Outcome(0, 1, 1)))
    stream.offer(calls(4), sinks[1])
    assert stream.abandon() == [LostBatch(sinks[0], 1, ((0, 1), (2, 4)), 0), LostBatch(sinks[1], 0, ((0, 1),), 0)]
    assert (stream.idle, stream.pending, stream.unaccepted_bytes, stream.next_put()) == (True, 0, 0, None)
    assert stream.abandon() == []
    assert stream.receive(answer(Outcome(0, 0, 4))) == []


def test_what_a_cancel_was_asked_of_is_not_put_again(stream: ProducerStream) -> None:
    """It ends with that; what was asked of messages that had ended, or nobody knows, changes nothing."""
    stream.offer(calls(0, 10), sink="sink", shift=5)
    accept_all(stream)
    stream.receive(answer(Outcome(0, 0, 3)))
    stream.ask_cancel(0, 2, 5)
    stream.ask_cancel(0, 8, 99)
    stream.ask_cancel(77, 0, 1)
    assert stream.queue_lost("life-1", resubmit=True) == [LostBatch("sink", 5, ((3, 5), (8, 10)), 0, True)]
    assert said_again(stream) == [(5, 8)]


def test_what_may_have_killed_the_host_comes_last(stream: ProducerStream) -> None:
    """Suspects are tried from the front: after another loss the first of them waits until the others ran."""
    for n in range(3):
        stream.offer(calls(n))
    orders = []
    for life in range(1, 6):
        accept_all(stream)
        stream.queue_lost(f"life-{life}", resubmit=True)
        orders.append([batch.first for batch in stream._offered])
    assert orders == [[0, 1, 2], [0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_what_is_left_of_a_batch_with_keys_in_use() -> None:
    """The queue takes what is around the duplicates as batches of their own: their outcomes are those of the batch."""
    queue = TransientQueue(clock=ManualClock())
    queue.admit([calls(0, keys=("used",), keep=Keep.KEEP)])
    stream = known(new_stream())
    keys = ("a", "used", "b", "c", "used", "d")
    stream.offer(calls(50, 6, keys=keys, keep=Keep.KEEP, lengths=lengths_column([b"x"] * 6), body=b"x" * 6), "sink", 20)
    request = put(stream)
    queue.admit(request.batches)
    stream.accepted(request)
    while (lease := queue.lease(1)) is not None:
        queue.ack(lease)
    ended = set()
    for delivery in stream.receive(queue.poll(1)):
        assert delivery.sink == "sink"
        ended |= {delivery.shift + at for lo, hi in delivery.runs for at in range(lo, hi)}
    assert ended == set(range(20, 26))
    assert stream.pending == 0
    assert not stream._inner


def test_parts_of_a_batch_with_keys() -> None:
    """Taken back in the middle, or put again after a loss: what is left of each part is known by its numbers."""
    stream = known(new_stream())
    stream.offer(calls(50, 10, keys=tuple("abcdefghij"), keep=Keep.KEEP), "sink")
    assert stream.take_back(50, 3, 4) == LostBatch("sink", 0, ((3, 4),), 0)
    put_all(stream)
    assert [(each.shift, each.runs) for each in stream.receive(answer(Outcome(54, 0, 1), Outcome(51, 0, 1)))] == [
        (4, ((0, 1),)),
        (1, ((0, 1),)),
    ]
    stream.queue_lost("life-1", resubmit=True)
    for first in (50, 52, 55, 57):
        stream.absorb([Outcome(first, 0, 1 if first < 57 else 3)])
    assert stream.pending == 1, "56 is left"
    [delivery] = stream.absorb([Outcome(56, 0, 1)])
    assert (delivery.shift, delivery.runs) == (6, ((0, 1),))
    assert stream.pending == 0
    assert not stream._inner
