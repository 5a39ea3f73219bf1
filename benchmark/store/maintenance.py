"""Looking after a store: list it, check it, mend it, clean it. What has no name of ours is not touched."""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import FolderError, StoreError
from benchmark.store import Store, leftovers, names
from benchmark.store.files import sha256
from benchmark.store.store import MARKER

Kind = Literal["missing", "truncated", "altered", "unfinished", "damaged", "extra", "unknown", "unreadable"]
SPOILT = ("missing", "truncated", "altered", "damaged")  # no run can use such a result


@dataclass(frozen=True)
class Problem:
    """What `verify` found, where below the store, and in which result."""

    path: str
    kind: Kind
    text: str
    key: str = ""


@dataclass
class Removed:
    """What was removed, or would be, and what could not be, with the reason."""

    gone: list[str] = field(default_factory=list)
    stayed: dict[str, str] = field(default_factory=dict)


def ls(store: Store) -> Iterator[dict[str, Any]]:
    """Every result with a marker: key, label, files, bytes, seconds, and whether `has` takes it."""
    for key in store.results():
        files, good = dict[str, Path](), store.has(key)
        with suppress(OSError):
            files = below(store.path(key))
        meta = store.meta(key) if good else {}
        facts = {"label": meta.get("label", ""), "seconds": meta.get("cost", {}).get("seconds")}
        yield {"key": key, "ok": good, "files": len(files), "bytes": sum(map(size_of, files.values()))} | facts


def verify(store: Store) -> Iterator[Problem]:
    """Read every file of every result and compare."""
    for folder in names.results(store.root, through_links=True):
        key = str(folder.relative_to(store.root))
        try:
            for problem in looked_at(store, key, folder):
                yield Problem(**{**vars(problem), "key": key})
        except OSError as error:
            yield Problem(key, "unreadable", f"cannot be read: {error.strerror or error}: give rights", key)
    for path in names.leftovers(store.root):
        if path.parent.name == names.TEMPORARY:
            rest = str(path.relative_to(store.root))
            yield Problem(rest, "unfinished", "left by a killed run, unless one runs; gc removes it")


def looked_at(store: Store, key: str, folder: Path) -> Iterator[Problem]:
    """The problems of one result.

    Raises:
        OSError: its folder cannot be read.
    """
    try:
        (folder / MARKER).lstat()
    except (FileNotFoundError, NotADirectoryError):
        yield Problem(key, "unfinished", "left by a killed run; the next run or gc removes it")
        return
    found = below(folder)
    try:
        files = store.marker(key).get("files")
    except StoreError as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from error
        yield Problem(f"{key}/{MARKER}", "damaged", str(error))
        return
    if files is None:
        yield Problem(key, "unknown", "no hashes recorded: written by an older version")
        return
    for name in sorted(files.keys() - found.keys()):
        yield Problem(f"{key}/{name}", "missing", "the file is gone")
    for name in sorted(found.keys() - files.keys() - {MARKER}):
        yield Problem(f"{key}/{name}", "extra", "no run wrote this file here")
    for name in sorted(files.keys() & found.keys()):
        yield from compare(found[name], files[name], f"{key}/{name}")


def gc(store: Store, keep: Callable[[str], bool] | None = None, *, dry: bool = False) -> Removed:
    """Remove what no run can use: unfinished and damaged results, leftovers, and results that `keep` denies.

    Attacked weights and found prompts of NSFW suites go, too, once their images are scored; their results stay.

    Args:
        keep: says of a key whether to keep its result; without it all good results stay.
        dry: only say what would go.

    Raises:
        FolderError: a run uses the store, or it is none.
    """
    with alone(store):
        found = names.results(store.root, through_links=False)
        keys = {folder: str(folder.relative_to(store.root)) for folder in found}
        gone = [f for f, key in keys.items() if not store.has(key) or (keep is not None and not keep(key))]
        done = remove(store, [*gone, *names.leftovers(store.root)], dry=dry)
        done.gone.extend(leftovers.sweep(store, dry=dry))
        return done


def repair(store: Store) -> tuple[list[Problem], Removed]:
    """Read everything as `verify` does and remove the results that are spoilt: the next run computes them again.

    Raises:
        FolderError: a run uses the store, or it is none.
    """
    with alone(store):
        problems = list(verify(store))
        spoilt = dict.fromkeys(problem.key for problem in problems if problem.kind in SPOILT)
        return problems, remove(store, map(store.path, spoilt), dry=False)


def remove(store: Store, paths: Iterable[Path], *, dry: bool) -> Removed:
    """Remove all of these that can be."""
    done = Removed()
    for path in paths:
        name = str(path.relative_to(store.root))
        try:
            if not dry:
                store.remove(path)
            done.gone.append(name)
        except StoreError as error:
            done.stayed[name] = str(error)
    return done


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Hold the store while no run uses it.

    Raises:
        FolderError: a run uses it, or it is none.
    """
    with store.existing().held(fcntl.LOCK_EX) as got:
        if not got:
            raise FolderError(f"expected the store {store.root} to be free, got a run that uses it: wait for it.")
        yield


def below(folder: Path) -> dict[str, Path]:
    """The files below a folder, by their name from there; folders that are links are not entered.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    files = [Path(at) / name for at, _, found in os.walk(folder, onerror=refuse) for name in found]
    return {str(file.relative_to(folder)): file for file in files if file.is_file()}


def size_of(file: Path) -> int:
    """Bytes of a file; none if it cannot be looked at."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def compare(file: Path, facts: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """The problem of one file, if it has one."""
    try:
        size = file.stat().st_size
        if size != facts["size"]:
            kind: Kind = "truncated" if size < facts["size"] else "altered"
            yield Problem(name, kind, f"{size} bytes, {facts['size']} were written")
        elif sha256(file) != facts["sha256"]:
            yield Problem(name, "altered", "another sha256 than was written")
    except OSError as error:
        yield Problem(name, "unreadable", f"cannot be read: {error.strerror or error}: give rights")
