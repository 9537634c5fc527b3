"""Outcomes, the outbox of a client, and what is kept for all."""

from daskqueue_core.outcomes import KeptResults, Outbox, Outcome


def outcome(first: int, nbytes: int = 0) -> Outcome:
    """One message that ended."""
    return Outcome(first, 0, 1, values=b"v" * nbytes)


def firsts(outcomes: object) -> list[int]:
    """Which outcomes these are."""
    return [each.first for each in outcomes]  # type: ignore[attr-defined]


def kept(**options: int | None) -> KeptResults:
    """No limits but those given."""
    return KeptResults(**{"ttl": None, "max_bytes": None, **options})


def test_runs_of_an_outcome() -> None:
    """All it covers, unless it says what was accepted."""
    assert Outcome(0, 5, 10).runs == ((0, 10),)
    assert Outcome(0, 5, 10, ((2, 3), (7, 10))).runs == ((2, 3), (7, 10))


def test_bytes_of_an_outcome() -> None:
    """Values, errors and texts count, and a little for itself."""
    plain = Outcome(0, 0, 1).nbytes
    assert plain > 0
    assert Outcome(0, 0, 1, values=b"123", errors=((0, b"45", "678"),)).nbytes == plain + 8


def test_outbox_repeats_until_acknowledged() -> None:
    """Reading takes nothing away; the cursor does."""
    box = Outbox("q:0", 0)
    box.add(outcome(1))
    box.add(outcome(2))
    answer = box.read(10**6)
    assert firsts(answer.outcomes) == [1, 2]
    assert box.read(10**6) == answer
    assert box.acknowledge(answer.cursor) == []
    assert len(box) == 0
    assert box.read(10**6) == (answer.cursor, ())


def test_outbox_keeps_what_came_later() -> None:
    """A cursor covers what it came with."""
    box = Outbox("q:0", 0)
    box.add(outcome(1))
    cursor = box.read(10**6).cursor
    box.add(outcome(2))
    box.acknowledge(cursor)
    box.acknowledge(cursor)
    assert firsts(box.read(10**6).outcomes) == [2]


def test_outbox_is_read_in_portions() -> None:
    """One outcome at least, however big, and the cursor covers just those."""
    box = Outbox("q:0", 0)
    for first in range(3):
        box.add(outcome(first, 1_000))
    answer = box.read(1)
    assert firsts(answer.outcomes) == [0]
    box.acknowledge(answer.cursor)
    assert firsts(box.read(1_500).outcomes) == [1, 2]


def test_outbox_of_another_epoch() -> None:
    """A foreign cursor, or none, acknowledges nothing."""
    box = Outbox("q:1", 0)
    box.add(outcome(1), kept=7)
    assert box.acknowledge(("q:0", 99)) == []
    assert box.acknowledge(None) == []
    assert len(box) == 1


def test_outbox_says_what_was_collected() -> None:
    """Of those that are kept: each once."""
    box = Outbox("q:0", 0)
    box.add(outcome(1), kept=7)
    box.add(outcome(2))
    box.add(outcome(3), kept=9)
    cursor = box.read(10**6).cursor
    assert box.acknowledge(cursor) == [7, 9]
    assert box.acknowledge(cursor) == []


def test_a_cursor_from_the_future() -> None:
    """Acknowledges what there is and not what comes."""
    box = Outbox("q:0", 0)
    box.add(outcome(1))
    box.acknowledge(("q:0", 5))
    box.add(outcome(2))
    assert firsts(box.read(10**6).outcomes) == [2]


def test_kept_until_collected_and_over_time() -> None:
    """The time to live begins with the collection."""
    results = kept(ttl=10)
    first, second = results.add(1, outcome(1), ((0, 1),)), results.add(1, outcome(2), ((5, 6),))
    assert (results.next_at(), results.expire(10**9)) == (None, [])
    results.collected([first], 100)
    assert results.next_at() == 110
    assert results.expire(109) == []
    assert results.expire(110) == [(0, 1)]
    assert (len(results), results.nbytes) == (1, outcome(2).nbytes)
    results.collected([second], 200)
    assert results.expire(10**9) == [(5, 6)]
    assert (len(results), results.nbytes, results.next_at()) == (0, 0, None)


def test_collected_again_does_not_live_longer() -> None:
    """The first collection counts, and what is gone is not collected."""
    results = kept(ttl=10)
    number = results.add(1, outcome(1), ((0, 1),))
    results.collected([number], 100)
    results.collected([number], 105)
    assert results.expire(110) == [(0, 1)]
    results.collected([number], 111)
    assert results.next_at() is None


def test_kept_for_ever() -> None:
    """Without a time to live nothing is over."""
    results = kept()
    results.collected([results.add(1, outcome(1), ())], 0)
    assert (results.next_at(), results.expire(10**18), len(results)) == (None, [], 1)


def test_the_oldest_collected_go_when_there_is_too_much() -> None:
    """Until it fits; what was not collected stays, even if it does not fit."""
    size = outcome(0, 1_000).nbytes
    results = kept(max_bytes=2 * size)
    numbers = [results.add(1, outcome(n, 1_000), ((n, n + 1),)) for n in range(4)]
    assert results.expire(0) == []
    results.collected([numbers[2], numbers[0], numbers[1]], 0)
    assert results.expire(0) == [(2, 3), (0, 1)]
    assert results.nbytes == 2 * size


def test_forget_of_a_part() -> None:
    """The blob stays for the others."""
    results = kept(ttl=10)
    number = results.add(1, Outcome(100, 10, 9, ((0, 5), (7, 9)), b"values"), ((30, 35), (37, 39)))
    results.forget(1, 100, 13, 18)
    [(_, left)] = results.read(0, 10**6)[1]
    assert (left.accepted, bytes(left.values)) == (((0, 3), (8, 9)), b"values")
    results.collected([number], 0)
    assert results.expire(10) == [(30, 33), (38, 39)]


def test_forget_of_all() -> None:
    """Bytes are free, and it does not expire a second time."""
    results = kept(ttl=10)
    first, second, other = Outcome(1, 0, 5), Outcome(1, 5, 4), Outcome(1, 0, 4)
    numbers = [results.add(1, first, ((0, 5),)), results.add(1, second, ((5, 9),)), results.add(2, other, ((9, 13),))]
    results.collected(numbers, 0)
    results.forget(1, 1, 0, 3)
    results.forget(1, 1, 3, 5)
    assert (len(results), results.nbytes) == (2, second.nbytes + other.nbytes)
    assert results.expire(10) == [(5, 9), (9, 13)]
    assert results.nbytes == 0


def test_forget_of_some_errors() -> None:
    """The others are still told, and the bytes of what is forgotten are free."""
    results = kept()
    results.add(1, Outcome(0, 3, 2, errors=((0, b"E" * 100, "one"), (1, b"E", "two"))), ((3, 5),))
    before = results.nbytes
    results.forget(1, 0, 0, 4)
    [(_, left)] = results.read(0, 10**6)[1]
    assert (left.errors, left.runs) == (((1, b"E", "two"),), ((1, 2),))
    assert results.nbytes == before - 103


def test_find_of_a_message() -> None:
    """The last outcome that covers it, of the client and batch that are asked for."""
    results = kept()
    early, late = Outcome(7, 2, 3, ((0, 1), (2, 3))), Outcome(7, 4, 1, life=1)
    results.add(1, early, ((2, 3), (4, 5)))
    results.add(1, late, ((4, 5),))
    assert [results.find(1, 7, index) for index in range(1, 6)] == [None, early, None, late, None]
    assert results.find(2, 7, 2) is None
    assert results.find(1, 2, 2) is None


def test_kept_results_are_read_in_portions() -> None:
    """In the order they came, from the number that the last answer named; gaps do no harm."""
    results = kept(ttl=1)
    numbers = [results.add(n, outcome(n, 1_000), ()) for n in range(5)]
    results.collected([numbers[1]], 0)
    results.expire(1)
    after, some = results.read(0, 1_500)
    assert [client for client, _ in some] == [0, 2]
    assert after == numbers[3]
    after, some = results.read(after, 10**6)
    assert (after, [client for client, _ in some]) == (-1, [3, 4])


def test_nothing_is_kept() -> None:
    """Nothing to read."""
    assert kept().read(0, 10**6) == (-1, [])


def test_what_a_gone_client_left_makes_room() -> None:
    """Over the limit it goes after what was collected, oldest first; under it stays, whatever the time."""
    kept = KeptResults(ttl=10, max_bytes=1000)
    first, second, third = (kept.add(1, Outcome(n, 0, 1, values=bytes(300)), ((n, n + 1),)) for n in range(3))
    kept.abandon([first, second])
    kept.collected([third], 0)
    assert (kept.expire(5), len(kept)) == ([(2, 3)], 2)
    assert kept.expire(10**9) == []
    kept.add(2, Outcome(3, 0, 1, values=bytes(300)), ((3, 4),))
    assert (kept.expire(10**9), len(kept)) == ([(0, 1)], 2)
