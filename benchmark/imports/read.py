"""A weight file -> its tensors by name, those of nested mappings with dots: safetensors, or a pickle, apart.

A pickle is a program: it is read by `benchmark.imports.unpickle` alone, which keeps what is plain data and refuses
the rest.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from benchmark.errors import DataError, clipped
from benchmark.imports.unpickle import TENSORS, TOLD
from benchmark.model.headers import tensors as checked
from benchmark.model.weights import PICKLED

Tensors = dict[str, Tensor]
READABLE = (".safetensors", *PICKLED)
SECONDS = 3600  # a pickle of many gigabytes on a slow disk
SURROUNDINGS = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP")  # what Python needs to begin
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class Held:
    """What weight files hold: tensors by name, the names of what else is in them, and the header's own words."""

    tensors: Tensors
    others: tuple[str, ...] = ()
    header: Mapping[str, str] = field(default_factory=dict)


def read(files: Iterable[Path]) -> Held:
    """The tensors of one file, or of the shards of one model.

    Raises:
        DataError: a file is cut off, holds more than tensors can say, or says a name that another has said.
    """
    tensors, others, header = Tensors(), list[str](), dict[str, str]()
    for file in files:
        held = read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file)
        if twice := sorted(tensors.keys() & held.tensors.keys()):
            raise DataError(f"expected each tensor in one shard, got {twice[0]!r} again in {file}: copy them again.")
        tensors |= held.tensors
        others += held.others
        header |= held.header
    if not tensors:
        raise DataError("expected tensors, got a file without any: was it saved with `torch.save(state_dict)`?")
    return Held(tensors, tuple(others), header)


def read_safetensors(file: Path) -> Held:
    """The tensors of a safetensors file, whose header is checked first."""
    checked(file)
    with safe_open(file, "pt") as handle:
        return Held(load_file(file), header=handle.metadata() or {})


def read_pickle(file: Path) -> Held:
    """The tensors of a pickle, read in a process of its own.

    Raises:
        DataError: it needs more than plain data, or is no pickle; with the way out.
    """
    with tempfile.TemporaryDirectory(prefix="titer-import-") as folder:
        unpickled(str(file.resolve()), folder)
        told: dict[str, Any] = {"error": "a process that ended without a word"}
        if (note := Path(folder, TOLD)).is_file():
            told = json.loads(note.read_text())
        if "error" in told:
            raise DataError(refusal(file, str(told["error"])))
        return Held(load_file(Path(folder, TENSORS)), tuple(told["others"]))


def unpickled(file: str, folder: str) -> None:
    """Let another process, which knows nothing of this one's surroundings, write a pickle's tensors into a folder."""
    command = [sys.executable, "-m", "benchmark.imports.unpickle", file, folder]
    kept = {name: os.environ[name] for name in SURROUNDINGS if name in os.environ}
    told = {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False, env=told, cwd=folder
        )


def refusal(file: Path, why: str) -> str:
    """Why a pickle was not read, and what to do."""
    needed = GLOBAL.search(why)
    got = f"a pickle that needs {needed[1]}, which could run code" if needed else clipped(" ".join(why.split()), 300)
    return (
        f"expected tensors alone in {file}, got {got}: where you trust it, load it there, and "
        "`torch.save(model.state_dict(), FILE)` or save it as safetensors."
    )
