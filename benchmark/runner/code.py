"""What a task's result depends on and its key does not hold: the code of its plug-in, and files named in its fields.

    {"attack lora": "3f2a…", "file /data/weights.pt": "9c41…"}

It is kept beside the result. Where it differs from what is there now, the result may be of other code: it is told, and
not computed again, for most edits change no number. Only the author knows: raise `version`, or trust it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmark.config.registry import PluginKind
from benchmark.config.sources import code_hash, source_of
from benchmark.plan.matrix import Plan
from benchmark.plan.task import Task
from benchmark.store.files import sha256

Source = Callable[[PluginKind, str], Path | None]
KINDS: dict[str, PluginKind] = {"defend": "defense", "attack": "attack", "score": "metric"}


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What is not as it was: `attack lora` or `file PATH`; where its code is, its version, and the results' keys."""

    what: str
    place: str
    version: int
    keys: tuple[str, ...]

    @property
    def told(self) -> str:
        """One line that says what to do."""
        count = f"{len(self.keys)} result{'s' if len(self.keys) != 1 else ''} of it in the store"
        if self.what.startswith("file "):
            remedy = "name the file anew, or raise `version` of the method, to compute them again"
        else:
            remedy = f"raise `version` ({self.version}) in {self.place} to compute them again"
        return f"{self.what} changed since {count}: {remedy}; --trust-version if no number changes"


def plugins(task: Task) -> Iterator[tuple[PluginKind, str]]:
    """The plug-ins that run in a task."""
    if task.kind in KINDS:
        yield KINDS[task.kind], task.plugin
    if "begin" in task.fields:
        yield "attack", task.fields["begin"]["use"]


def pin(plan: Plan) -> None:
    """Read the code of every plug-in of a plan now: a file that is edited later is not what this process runs."""
    for kind, name in {pair for task in plan.tasks.values() for pair in plugins(task)}:
        file = source_of(kind, name)
        if file is not None and file.is_file():
            code_hash(file)


def code_of(task: Task, source: Source | None = None) -> dict[str, str]:
    """The hash of each plug-in of a task, and of each file that its fields name and its key does not hold."""
    found = {}
    for kind, name in plugins(task):
        file = (source or source_of)(kind, name)
        if file is not None and file.is_file():
            found[f"{kind} {name}"] = code_hash(file)
    if task.kind in KINDS:
        fields = {name: value for name, value in task.fields.items() if name not in (*task.places, "identity")}
        for path in files_in(fields):
            found[f"file {path}"] = file_hash(path, path.stat().st_size, path.stat().st_mtime_ns)
    return found


@cache
def file_hash(path: Path, size: int, time: int) -> str:
    """Twelve hex digits over a file; one of the same size and time is read once."""
    return sha256(path)[:12]


def files_in(value: Any) -> Iterator[Path]:
    """Every text in a value that names a file."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from files_in(part)
    elif isinstance(value, str) and ("/" in value or "." in value):
        try:
            path = Path(value).expanduser().resolve()
            if path.is_file():
                yield path
        except (OSError, ValueError, RuntimeError):
            return


def changed(plan: Plan, notes: Mapping[str, Mapping[str, str]]) -> list[Changed]:
    """What is not as it was when results were made; `notes` are what was kept with them, by key."""
    found: dict[str, list[str]] = {}
    source = cache(source_of)  # it lists folders and entry points, and a plan has few plug-ins but many tasks
    for key, before in notes.items():
        now = code_of(plan.tasks[key], source)
        for what in before.keys() & now.keys():
            if before[what] != now[what]:
                found.setdefault(what, []).append(key)
    return [
        Changed(what=what, place=place_of(what), version=plan.tasks[keys[0]].version, keys=tuple(keys))
        for what, keys in sorted(found.items())
    ]


def place_of(what: str) -> str:
    """Where the code of `attack lora` is."""
    kind, _, name = what.partition(" ")
    known: dict[str, PluginKind] = {str(kind): kind for kind in KINDS.values()}
    return str(source_of(known[kind], name)) if kind in known else name
