"""The tiny random pipeline of `benchmark.kit.conformance`: every unit test runs on it in seconds.

torch and diffusers are imported by what needs them: xdist's controller reads this file, and runs no test.
"""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from benchmark.diffusion import Model
    from benchmark.types import Concept, Examples

if threading.current_thread() is threading.main_thread():  # a shell's background jobs inherit that it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """Nothing that an import makes is garbage: to search for it would take a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """A search for garbage need not look at all that was imported: it would take a second, each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # a model is thousands of objects, and hardly any is garbage when it is made


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def plain_kernels() -> Iterator[None]:
    """Torch's own convolutions, which at 8 px take two thirds of oneDNN's time.

    Not for what is compared with another process to the byte: there oneDNN computes.
    """
    import torch

    before, *_ = torch.backends.mkldnn.set_flags(_enabled=False)
    yield
    torch.backends.mkldnn.set_flags(_enabled=before)


@pytest.fixture(scope="session", autouse=True)
def no_power_cuts() -> Iterator[None]:
    """Nothing waits for the disk: no test loses the machine's power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, saved."""
    from benchmark.kit import conformance

    folder = tmp_path_factory.mktemp("tiny") / "model"
    conformance.tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder in which the command finished the tiny config; who changes something in it works on a copy.

    What it printed is in the files `stdout` and `stderr`.

    Its `store` has the results of every smaller config, too: a run that begins with a copy of it computes nothing.
    """
    from tests.runs import run

    folder = tmp_path_factory.mktemp("run")
    done = run(folder, tiny_folder)
    assert done.exit_code == 0, done.output
    for name in ("stdout", "stderr"):
        (folder / name).write_text(getattr(done, name))
    return folder


class Folders(dict[str, Path]):
    """A folder of each architecture, by its name in `tests.pipelines`, written when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, name: str) -> Path:
        from tests import pipelines

        self[name] = pipelines.write(name, self.root / name)
        return self[name]


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture, by its name in `tests.pipelines`."""
    return Folders(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> "Model":
    from benchmark.model import load

    return load(tiny_folder)


@pytest.fixture
def model(loaded: "Model") -> Iterator["Model"]:
    """The tiny model; a test that changes it fails."""
    import torch

    before = {n: p.clone() for part in loaded.parts.values() for n, p in part.named_parameters()}
    yield loaded
    after = {n: p for part in loaded.parts.values() for n, p in part.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.fixture
def concept() -> "Concept":
    from benchmark.kit import conformance

    return conformance.tiny_concept()


@pytest.fixture
def examples() -> "Examples":
    from benchmark.kit import conformance

    return conformance.tiny_examples()
