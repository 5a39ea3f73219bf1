"""Methods are tried on models of a few pixels, each alone in its process."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _kernels(plain_kernels: None) -> None:
    """For all tests of this room."""
