"""Functions and classes that later tasks rely on: whoever replaces one is found, and the real one is put back.

Looked at are the names of the modules below, of all our own, and the methods of torch's and the base's classes. What
is added beside them, or changed in a library's depths, is not seen.
"""

import sys
from collections.abc import Iterator
from operator import is_
from typing import Any

import torch

from benchmark.diffusion import Model

LIBRARIES = (
    *("builtins", "hashlib", "io", "json", "math", "os", "os.path", "random", "shutil", "time"),
    *("numpy", "numpy.random", "PIL.Image", "pyarrow.parquet", "safetensors.torch"),
    *("torch", "torch.autograd", "torch.fft", "torch.linalg", "torch.nn.functional", "torch.nn.init", "torch.special"),
)
OURS = ("benchmark", "defenses", "attacks", "metrics", "leaderboards")


class Names:
    """What each name of each owner stands for."""

    def __init__(self, model: Model | None) -> None:
        self.held = [(owner, dict(vars(owner))) for owner in known(model)]

    def restore(self) -> list[str]:
        """Put back what was replaced; the names."""
        return [f"{owner.__name__}.{name}" for owner, names in self.held for name in put_back(owner, names)]


def known(model: Model | None) -> list[Any]:
    """The owners, looked up anew when modules were imported since, or another base was loaded."""
    now, kind = (len(sys.modules), model and model.denoiser), model is None  # tasks with a base and without take turns
    if kind not in LAST or LAST[kind][0] != now:
        LAST[kind] = now, list(owners(model))
    return LAST[kind][1]


LAST: dict[bool, tuple[tuple[int, Any], list[Any]]] = {}


def owners(model: Model | None) -> Iterator[Any]:
    """The modules and classes whose names are kept, each once."""
    ours = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in OURS]
    modules = [*(sys.modules[name] for name in LIBRARIES if name in sys.modules), *ours]
    own = [item for module in ours for item in vars(module).values() if is_class_of(item, module.__name__)]
    theirs = [item for item in (*vars(torch.nn).values(), *vars(torch.optim).values()) if isinstance(item, type)]
    used = [torch.Tensor, *theirs, *own, *(base_classes(model) if model else ())]
    yield from {id(item): item for item in (*modules, *used)}.values()


def is_class_of(item: Any, module: str) -> bool:
    """Whether it is a class that a module defines."""
    return isinstance(item, type) and item.__module__ == module


def base_classes(model: Model) -> set[type]:
    """The classes of the base's layers, schedule and tokenizers, with those that they derive from."""
    diffusers = sys.modules.get("diffusers")
    found = {type(layer) for part in model.modules.values() for layer in part.modules()}
    found |= {type(model.scheduler), *(type(getattr(model, name)) for name, _ in (*model.readers, *model.listeners))}
    found |= {diffusers.DDIMScheduler} if diffusers else set()
    return {base for cls in found for base in cls.__mro__ if base is not object}


def put_back(owner: Any, names: dict[str, Any]) -> list[str]:
    """Put back what an owner's names stood for."""
    now = vars(owner)
    if len(now) == len(names) and all(map(is_, now, names)) and all(map(is_, now.values(), names.values())):
        return []  # nearly always
    other = [name for name, value in names.items() if now.get(name) is not value and is_code(value)]
    found = [name for name in other if not is_torchs_own(now.get(name), names[name])]
    for name in found:
        setattr(owner, name, names[name])
    if isinstance(owner, type) and len(now) > len(names):  # a method put over an inherited one
        fresh = {name: value for name, value in now.items() if name not in names and is_code(value)}
        inherited = {name: getattr(super(owner, owner), name, None) for name in fresh}
        added = [name for name, value in fresh.items() if not is_torchs_own(value, inherited[name])]
        for name in added:
            delattr(owner, name)
        found += added
    return found


def is_torchs_own(now: Any, before: Any) -> bool:
    """Whether torch itself wrapped an optimizer's `step`, as it does for the first one of each class."""
    wrapped = getattr(now, "__wrapped__", None)
    return getattr(now, "hooked", False) is True and wrapped is not None and wrapped is before


def is_code(value: Any) -> bool:
    """Whether something can be called, or is a property."""
    return callable(value) or isinstance(value, property | staticmethod | classmethod)
