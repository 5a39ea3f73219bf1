"""Our exceptions.

TiterError
├── InputError          the user's input is wrong; exit code 2, before any model is loaded
│   ├── ConfigError     a config, a preset, a name, a field or a value
│   ├── DataError       a prompt file, an image, a concept card, a model folder
│   ├── FolderError     an output folder or store that belongs to something else
│   └── PackageError    a package that an option needs is not installed
├── PlanError           two tasks with one identity, or a task whose parent is not in the plan
├── StoreError          a result is missing or damaged
├── PluginError         a plug-in that breaks its contract or cannot be imported
└── WorkerError         no worker can be started

Every message says what was expected, what was got and what to do.
"""

import difflib
from collections.abc import Iterable


class TiterError(Exception):
    """The root of the tree."""


class InputError(TiterError):
    """The user's input is wrong."""


class ConfigError(InputError):
    """A config, a preset, a name, a field or a value is wrong."""


class DataError(InputError):
    """A file that holds data cannot be used."""


class FolderError(InputError):
    """A folder belongs to something else."""


class PackageError(InputError):
    """A package that an option needs is not installed."""


class PlanError(TiterError):
    """The plan contradicts itself."""


class StoreError(TiterError):
    """A result is missing or damaged."""


class PluginError(TiterError):
    """A plug-in breaks its contract."""


class WorkerError(TiterError):
    """No worker can be started."""


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """`unknown defense 'eds': did you mean 'esd'? Known: esd, none.`"""
    names = sorted(map(str, known))  # an enumeration shows its values
    near = difflib.get_close_matches(got, names, n=1)
    hint = f": did you mean {near[0]!r}?" if near else "."
    return f"unknown {what} {got!r}{hint} Known: {', '.join(names) or 'none'}."
