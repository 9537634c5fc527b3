"""The arithmetic of runs against sets."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from daskqueue_core.runs import clean, difference, disjoint, intersection, positions, total

any_runs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def members(runs: list[tuple[int, int]]) -> list[int]:
    """The numbers, in order."""
    return [seq for start, stop in runs for seq in range(start, stop)]


@given(any_runs)
def test_clean(runs: list[tuple[int, int]]) -> None:
    """Ascending, disjoint, not adjacent, and the same numbers."""
    out = clean(runs)
    assert members(out) == sorted(set(members(runs)))
    assert all(left[1] < right[0] for left, right in itertools.pairwise(out))
    assert total(out) == len(set(members(runs)))


@given(any_runs, any_runs)
def test_intersection_and_difference(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    """As of sets, and ascending."""
    left, right = clean(left), clean(right)
    assert members(intersection(left, right)) == sorted(set(members(left)) & set(members(right)))
    assert members(difference(left, right)) == sorted(set(members(left)) - set(members(right)))


@given(any_runs)
def test_disjoint(runs: list[tuple[int, int]]) -> None:
    """No number twice, no empty run."""
    numbers = members(runs)
    assert disjoint(runs) == (len(set(numbers)) == len(numbers) and all(start < stop for start, stop in runs))


@given(any_runs, st.integers(0, 40), st.integers(0, 40))
def test_positions(runs: list[tuple[int, int]], first: int, end: int) -> None:
    """A slice of the numbers, in the order of the runs."""
    assert members(positions([run for run in runs if run[0] < run[1]], first, end)) == members(runs)[first:end]
