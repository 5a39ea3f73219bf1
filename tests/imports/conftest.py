"""Pickles are read in this process: another one takes seconds to begin. `test_pickles.py` begins it."""

import pytest

from benchmark.imports import read, unpickle


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "apart" not in request.keywords:
        monkeypatch.setattr(read, "unpickled", unpickle.main)
