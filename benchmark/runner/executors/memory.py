"""How much memory a task needs: what its like took at most in earlier runs, or a declared guess."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from benchmark.plan.task import Task
from benchmark.store import Store
from benchmark.store.files import contents
from benchmark.store.store import MARKER

# Times the size of the base's weights. Training: base, defended model, trained copy, its gradient, Adam's two moments.
# Drawing: base, defended model, and as much again for a batch. Scoring: what the worker still holds, and the judge.
SHARES = {"defend": 6, "attack": 6, "generate": 4, "embed": 3, "score": 3}
ROOM = 1024  # MiB of a process beside its tensors: its context on the GPU, its libraries
MARGIN = 1.2  # what a caching allocator holds beyond the tensors
MOST = 64  # results of a group that are looked at


def group(task: Task) -> str:
    """Tasks of one kind and plug-in are thought to need the same."""
    return f"{task.kind}/{task.plugin}"


def size_of(folder: Path) -> int:
    """MiB of a base's weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors")) >> 20


def declared(kind: str, weights: int) -> int:
    """MiB that a task of a kind needs on a base of `weights` MiB, as long as nothing was measured."""
    return SHARES[kind] * weights + ROOM


def measured(peak: int) -> int:
    """MiB to keep free for a task whose tensors took `peak` MiB."""
    return int(MARGIN * peak) + ROOM


def peaks(store: Store, base: str, groups: Iterable[str]) -> dict[str, int]:
    """The largest recorded peak, in MiB, of each group that has one on this base."""
    found: dict[str, int] = {}
    for name in set(groups):
        for marker in islice(store.root.glob(f"{name}-*/{MARKER}"), MOST):
            try:
                meta = json.loads(contents(str(marker)))
                peak, of = meta["cost"].get("peak_memory_mib"), meta["identity_of"]["base"]
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # no whole result: `has` will say so
            if peak is not None and of == base:
                found[name] = max(found.get(name, 0), int(peak))
    return found
