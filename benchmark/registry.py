"""Plug-ins by kind and name: built-in ones by file name, others by entry point. Importing this loads no torch.

A third party's package declares `[project.entry-points."titer.defenses"] mine = "package.module:Class"`.
A plug-in that cannot be imported stops only those who ask for it.
"""

import importlib
import inspect
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import ConfigError, PluginError, unknown

PluginKind = Literal["defense", "attack", "metric"]
FOLDERS: dict[PluginKind, str] = {"defense": "defenses", "attack": "attacks", "metric": "metrics"}
# What the plug-ins of a folder share.
SHARED: dict[PluginKind, set[str]] = {
    "defense": {"data", "sampling", "scopes"},
    "attack": {"adapters", "search", "trainer", "words"},
    "metric": {"detector", "embedders", "sets", "towers"},
}


def builtin(kind: PluginKind) -> list[str]:
    """Names of the plug-ins that ship with titer: the files of their folder."""
    package = importlib.import_module(FOLDERS[kind])
    folder = Path(inspect.getfile(package)).parent
    return sorted(file.stem for file in folder.glob("*.py") if file.stem not in {"__init__", "base"} | SHARED[kind])


def source(kind: PluginKind, name: str) -> Path:
    """The file of a built-in plug-in."""
    package = importlib.import_module(FOLDERS[kind])
    return Path(inspect.getfile(package)).parent / f"{name}.py"


def external(kind: PluginKind) -> dict[str, EntryPoint]:
    """Entry points of other packages, by name."""
    return {point.name: point for point in entry_points(group=f"titer.{FOLDERS[kind]}")}


def names(kind: PluginKind) -> list[str]:
    """All names of a kind."""
    return sorted({*builtin(kind), *external(kind)})


def find(kind: PluginKind, name: str) -> type[Any]:
    """The class of a plug-in.

    Raises:
        ConfigError: no plug-in has this name.
        PluginError: it cannot be imported, or its file holds no class of that kind.
    """
    if name not in names(kind):
        raise ConfigError(unknown(kind, name, names(kind)))
    try:
        if name in builtin(kind):
            return public_class(importlib.import_module(f"{FOLDERS[kind]}.{name}"), kind)
        loaded: type[Any] = external(kind)[name].load()
    except ImportError as error:
        raise PluginError(f"expected {kind} {name!r} to import, got {error!r}: install what it needs.") from error
    return loaded


def public_class(module: Any, kind: PluginKind) -> type[Any]:
    """The one plug-in class that a module defines."""
    base = getattr(importlib.import_module(f"{FOLDERS[kind]}.base"), kind.capitalize())
    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, base) and item.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise PluginError(f"expected one {kind} class in {module.__name__}, got {len(found)}: one paper, one file.")
    return found[0]
