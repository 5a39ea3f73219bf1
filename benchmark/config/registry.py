"""Plug-ins by kind and name: built-in ones by file name, others by entry point. Importing this loads no torch.

A third party's package declares `[project.entry-points."titer.defenses"] mine = "package.module:Class"`.
A script or a notebook registers its own classes for the life of its process.
A plug-in that cannot be imported stops only those who ask for it.
"""

import dataclasses
import importlib
import inspect
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal

from benchmark.errors import ConfigError, PluginError, unknown

PluginKind = Literal["defense", "attack", "metric"]
FOLDERS: dict[PluginKind, str] = {"defense": "defenses", "attack": "attacks", "metric": "metrics"}
# What the plug-ins of a folder share.
SHARED: dict[PluginKind, set[str]] = {
    "defense": {
        *(
            "alignment",
            "attention",
            "closed_form",
            "curvature",
            "data",
            "decoding",
            "free_words",
            "joint",
            "membranes",
            "merge",
            "meta",
            "moderator",
            "sampling",
            "simulated",
        ),
        *("draws", "erasers", "erasing", "saliency", "templates", "text_rows"),
    },
    "attack": {"adapting", "held_out", "noise", "prompt_search", "restricted", "search", "trainer", "words"},
    "metric": {"binary", "classifiers", "detector", "embedders", "judge", "judges", "sets"},
}
# What this process registered.
OWN: dict[tuple[PluginKind, str], type[Any]] = {}


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
    return {point.name: point for point in installed(state_of_path())[kind]}


@lru_cache(maxsize=1)
def installed(state: tuple[tuple[str, int], ...]) -> dict[PluginKind, tuple[EntryPoint, ...]]:
    """The entry points of a `state_of_path`: to read those of all packages takes a tenth of a second."""
    found = entry_points()
    return {kind: tuple(found.select(group=f"titer.{folder}")) for kind, folder in FOLDERS.items()}


def state_of_path() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when one was last put there or taken away, in nanoseconds."""
    return tuple((place, changed(Path(place))) for place in sys.path)


def changed(place: Path) -> int:
    """When a folder's list of files changed; 0 of what is not there."""
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return 0


def register(kind: PluginKind, name: str, cls: type[Any]) -> None:
    """Make a class known to this process only; the same name again replaces it.

    Raises:
        ConfigError: an installed plug-in has this name.
    """
    if name in builtin(kind) or name in external(kind):
        raise ConfigError(f"expected a new name for {cls.__name__}, got the {kind} {name!r}: choose another.")
    OWN[kind, name] = cls


def names(kind: PluginKind) -> list[str]:
    """All names of a kind."""
    return sorted({*builtin(kind), *external(kind), *(name for of, name in OWN if of == kind)})


def is_foreign(kind: PluginKind, name: str) -> bool:
    """Whether a plug-in is another package's: neither shipped with titer nor registered by this process."""
    return (kind, name) not in OWN and name not in builtin(kind)


def find(kind: PluginKind, name: str) -> type[Any]:
    """The class of a plug-in.

    Raises:
        ConfigError: no plug-in has this name.
        PluginError: it cannot be imported, or holds no class of that kind.
    """
    built_in = name in builtin(kind)  # looked at first: the entry points of all packages take long to read
    if not built_in and name not in names(kind):
        raise ConfigError(unknown(kind, name, names(kind)))
    try:
        if built_in:
            return public_class(importlib.import_module(f"{FOLDERS[kind]}.{name}"), kind)
        loaded = OWN[kind, name] if (kind, name) in OWN else external(kind)[name].load()
    except PluginError:
        raise
    except (Exception, SystemExit) as error:  # another's file may raise anything
        raise PluginError(
            f"expected {kind} {name!r} to import, got {error!r}: install what it needs, or mend it."
        ) from error
    return derived(loaded, kind, name)


def derived(loaded: Any, kind: PluginKind, name: str) -> type[Any]:
    """What an entry point named, if it is a plug-in of that kind.

    Raises:
        PluginError: it is none.
    """
    base = base_of(kind)
    if not (inspect.isclass(loaded) and issubclass(loaded, base) and dataclasses.is_dataclass(loaded)):
        raise PluginError(
            f"expected {kind} {name!r} to be a dataclass that derives from {base.__name__}, got {loaded}."
        )
    if missing := undeclared(loaded):
        raise PluginError(
            f"expected {', '.join(missing)} in {loaded.__name__}, the {kind} {name!r}, got none: set what "
            f"{base.__module__}.{base.__name__} declares, or derive from a class that sets it."
        )
    return loaded


def undeclared(cls: type[Any]) -> list[str]:
    """The class data that a plug-in's contract demands and `cls` does not set."""
    declared = [name for c in cls.__mro__ for name, kind in inspect.get_annotations(c).items() if is_class_data(kind)]
    return [name for name in dict.fromkeys(declared) if not hasattr(cls, name)]


def is_class_data(annotation: Any) -> bool:
    """Whether it is `ClassVar[...]`."""
    return getattr(annotation, "__origin__", None) is ClassVar or str(annotation).startswith(("ClassVar", "typing.Cl"))


def base_of(kind: PluginKind) -> type[Any]:
    """The contract of a kind."""
    base: type[Any] = getattr(importlib.import_module(f"{FOLDERS[kind]}.base"), kind.capitalize())
    return base


def public_class(module: Any, kind: PluginKind) -> type[Any]:
    """The one plug-in class that a module defines."""
    base = base_of(kind)
    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, base) and item.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise PluginError(f"expected one {kind} class in {module.__name__}, got {len(found)}: one paper, one file.")
    return found[0]
