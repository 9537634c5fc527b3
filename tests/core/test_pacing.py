"""How many messages to lease, from measured time."""

import pytest

from daskqueue_core import pacing
from daskqueue_core.pacing import CAP, FUNCTIONS, OVERSTAY_S, Pacer


def timed(seconds: float, count: int = 1) -> Pacer:
    """A pacer that has seen one run of `f`."""
    pacer = Pacer()
    pacer.observe(b"f", count, seconds)
    return pacer


def test_nothing_is_known_of_a_new_function() -> None:
    """No estimate, no wants, nothing fetched meanwhile, and the least patience."""
    pacer = Pacer()
    assert (pacer.wants(4), pacer.estimate(b"f", 10), pacer.prefetch_after(b"f", 1)) == ({}, None, None)
    assert pacer.overstay_after(b"f", 10) == OVERSTAY_S


@pytest.mark.parametrize(("seconds", "wanted"), [(10.0, 1), (0.050, 1), (0.010, 9), (0.001, 90), (0.0, CAP)])
def test_wants_about_the_target(seconds: float, wanted: int) -> None:
    """90 ms of work: one long task, many short ones, never more than the cap."""
    assert timed(seconds).wants(1) == {b"f": wanted}


def test_wants_for_each_slot() -> None:
    """The target is for one slot."""
    assert timed(0.010).wants(8) == {b"f": 72}


@pytest.mark.parametrize(("cap", "wanted"), [(10, 10), (1, 1), (0, 1), (10**9, 90)])
def test_wants_within_a_cap(cap: int, wanted: int) -> None:
    """A cap bounds, but never to nothing, and never raises what pacing says."""
    assert timed(0.001).wants(1, cap) == {b"f": wanted}


def test_estimate_is_for_the_count() -> None:
    """Seconds per message, as measured over a run."""
    assert timed(2.0, count=100).estimate(b"f", 50) == pytest.approx(1.0)


def test_a_slower_figure_counts_half() -> None:
    """One slow run does not double the estimate at once, and an absurd one is bounded."""
    pacer = timed(0.010)
    pacer.observe(b"f", 1, 0.030)
    assert pacer.estimate(b"f", 1) == pytest.approx(0.020)
    pacer = timed(0.010)
    pacer.observe(b"f", 1, 1_000.0)
    assert pacer.estimate(b"f", 1) == pytest.approx(0.045)


def test_a_faster_figure_comes_in_by_halves() -> None:
    """A first call that imported a module is forgotten after a few runs."""
    pacer = timed(1.0)
    for expected in (0.5, 0.25, 0.125):
        pacer.observe(b"f", 1, 0.001)
        assert pacer.estimate(b"f", 1) == pytest.approx(expected)
    for _ in range(10):
        pacer.observe(b"f", 1, 0.001)
    assert pacer.estimate(b"f", 1) == pytest.approx(0.001)


def test_a_run_of_nothing_says_nothing() -> None:
    """A lease that was given back whole was not timed."""
    pacer = Pacer()
    pacer.observe(b"f", 0, 5.0)
    assert pacer.estimate(b"f", 1) is None


def test_functions_have_figures_of_their_own() -> None:
    """A slow one does not slow the others."""
    pacer = timed(1.0)
    pacer.observe(b"g", 1, 0.001)
    assert pacer.wants(1) == {b"f": 1, b"g": 90}


def test_the_last_64_functions_are_known() -> None:
    """By use: one that runs again stays."""
    pacer = timed(0.001)
    for n in range(FUNCTIONS - 1):
        pacer.observe(b"%d" % n, 1, 0.001)
    pacer.observe(b"f", 1, 0.001)
    pacer.observe(b"new", 1, 0.001)
    assert len(pacer.wants(1)) == FUNCTIONS
    assert pacer.estimate(b"f", 1) is not None
    assert pacer.estimate(b"0", 1) is None


def test_the_next_lease_is_fetched_just_before_the_end() -> None:
    """At once for a run under 45 ms, 45 ms before the end of a longer one, not beside a long or a very short one."""
    pacer = timed(0.001)
    assert pacer.prefetch_after(b"f", 30) == 0.0
    assert pacer.prefetch_after(b"f", 48) == pytest.approx(0.003)
    assert pacer.prefetch_after(b"f", 110) == pytest.approx(0.065)
    assert pacer.prefetch_after(b"f", 200) is None
    assert timed(0.00001).prefetch_after(b"f", 19) is None


def test_large_results_make_short_leases() -> None:
    """4 MiB of results at most; a smaller figure is believed by halves."""
    pacer = Pacer()
    pacer.observe(b"f", 1000, 0.001, 1000 << 20)
    assert pacer.wants(1) == {b"f": 4}
    pacer.observe(b"f", 1000, 0.001, 0)
    assert pacer.wants(2) == {b"f": 16}
    pacer.observe(b"f", 1, 0.000001, 100 << 20)
    assert pacer.wants(1) == {b"f": 1}


def test_overstay() -> None:
    """Four times the estimate, and 100 ms at least."""
    assert timed(1.0).overstay_after(b"f", 2) == pytest.approx(8.0)
    assert timed(0.001).overstay_after(b"f", 2) == OVERSTAY_S


def test_constants_agree() -> None:
    """The next lease is fetched also while one runs that takes longer than it should, before it has overstayed."""
    assert pacing.PREFETCH_S < pacing.TARGET_S < pacing.OVERSTAY_S
    assert pacing.TARGET_S < pacing.PREFETCH_MOST_S < pacing.OVERSTAY_FACTOR * pacing.TARGET_S
