"""Pickles are read in this process: another one takes seconds to begin. `test_pickles.py` begins it."""

import pytest

from benchmark.imports import read, unpickle


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "unpickled", unpickle.main)
