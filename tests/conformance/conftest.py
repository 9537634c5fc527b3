"""The suite lives in a package: pytest is told to make its assertions speak."""

import pytest

pytest.register_assert_rewrite("daskqueue_core.testing")
