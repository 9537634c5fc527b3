"""What every test shares: the Hypothesis profiles and the `properties` marker.

Not a place for fixtures of one package: those belong beside its tests.
"""

import os

import pytest
from hypothesis import settings

# "ci" never surprises: the same examples at every run, no deadline a busy machine could miss. "properties" searches.
settings.register_profile("ci", max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)
settings.register_profile("properties", max_examples=2_000, stateful_step_count=50, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every Hypothesis state machine, so that none is forgotten by `nox -s properties`."""
    for item in items:
        function = getattr(item, "function", None)
        if hasattr(function, "_hypothesis_state_machine_class"):
            item.add_marker(pytest.mark.properties)
