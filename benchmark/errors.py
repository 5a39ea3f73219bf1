"""Our exceptions.

TiterError
├── InputError          the user's input is wrong; exit code 2, before any model is loaded
│   ├── ConfigError     a config, a preset, a name, a field or a value
│   ├── DataError       a prompt file, an image, a concept card, a model folder
│   ├── PlanError       parts of a config that do not go together, or two cells with one name
│   ├── FolderError     an output folder or store that belongs to something else
│   └── PackageError    a package that an option needs is not installed
├── StoreError          a result is missing or damaged
├── PluginError         a plug-in that breaks its contract or cannot be imported
└── WorkerError         no worker can be started

Every message says what was expected, what was got and what to do.
"""

import difflib
import json
from collections.abc import Iterable


class TiterError(Exception):
    """The root of the tree."""


class InputError(TiterError):
    """The user's input is wrong."""


class ConfigError(InputError):
    """A config, a preset, a name, a field or a value is wrong."""


class DataError(InputError):
    """A file that holds data cannot be used."""


class PlanError(InputError):
    """A config and its cards contradict each other."""


class FolderError(InputError):
    """A folder belongs to something else."""


class PackageError(InputError):
    """A package that an option needs is not installed."""


class StoreError(TiterError):
    """A result is missing or damaged."""


class PluginError(TiterError):
    """A plug-in breaks its contract."""


class WorkerError(TiterError):
    """No worker can be started."""


MOST = 200  # letters of a value in a message


def shown(value: object, most: int = MOST) -> str:
    """A value as a message quotes it: `repr`, of which `most` letters."""
    try:
        text = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes; a list in itself
        return f"<{type(value).__name__} that is too large to show>"
    return clipped(text, most)


def clipped(text: str, most: int = MOST) -> str:
    """The first `most` letters of a text, and a sign that there are more."""
    return text if len(text) <= most else f"{text[:most]} ..."


def visible(text: str) -> str:
    """A text for terminals: control characters, which could move the cursor or set the title, as in `\\u001b`.

    Line ends, tabs and the blanks of every script stay. JSON stays JSON.
    """
    if text.isprintable():
        return text
    kept = [c.isprintable() or c in "\n\t" or (c.isspace() and c > "\x9f") for c in text]
    return "".join(c if is_kept else json.dumps(c)[1:-1] for c, is_kept in zip(text, kept, strict=True))


def unknown(what: str, got: object, known: Iterable[str]) -> str:
    """`unknown defense 'eds': did you mean 'esd'? Known: esd, none.`"""
    names = sorted(map(str, known))  # an enumeration shows its values
    near = difflib.get_close_matches(got[:MOST], names, n=1) if isinstance(got, str) else []
    hint = f": did you mean {near[0]!r}?" if near else "."
    return f"unknown {what} {shown(got)}{hint} Known: {', '.join(names) or 'none'}."


def readable(text: str, most: int = 20_000) -> str:
    """Text of somebody else's as tables, JSON and terminals can hold it: Unicode, and no longer than `most`.

    Of a longer one the beginning and the end are kept: a traceback says there what went wrong.
    """
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= most else f"{whole[: most // 2]}\n[...]\n{whole[-most // 2 :]}"
