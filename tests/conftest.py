"""The tiny random pipeline of `benchmark.kit.conformance`: every unit test runs on it in seconds."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.kit import conformance
from benchmark.model import load
from benchmark.types import Concept, Examples
from tests import pipelines

if threading.current_thread() is threading.main_thread():  # a shell's background jobs inherit that it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, saved."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    conformance.tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture, by its name in `tests.pipelines`."""
    root = tmp_path_factory.mktemp("families")
    return {name: pipelines.write(name, root / name) for name in pipelines.PIPELINES}


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> Model:
    return load(tiny_folder)


@pytest.fixture
def model(loaded: Model) -> Iterator[Model]:
    """The tiny model; a test that changes it fails."""
    before = {n: p.clone() for part in loaded.parts.values() for n, p in part.named_parameters()}
    yield loaded
    after = {n: p for part in loaded.parts.values() for n, p in part.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.fixture
def concept() -> Concept:
    return conformance.tiny_concept()


@pytest.fixture
def examples() -> Examples:
    return conformance.tiny_examples()
