"""Looking after a store: list it, check it, clean it."""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import FolderError, StoreError
from benchmark.store import Store, leftovers
from benchmark.store.files import sha256
from benchmark.store.store import MARKER, TEMPORARY

Kind = Literal["missing", "truncated", "altered", "unfinished", "damaged", "extra", "unknown"]


@dataclass(frozen=True)
class Problem:
    """What `verify` found, and where below the store."""

    path: str
    kind: Kind
    text: str


def ls(store: Store) -> Iterator[dict[str, Any]]:
    """Every result with a marker: key, label, files, bytes, seconds, and whether `has` takes it."""
    for key in store.results():
        files = [file for file in store.path(key).rglob("*") if file.is_file()]
        size, good = sum(file.stat().st_size for file in files), store.has(key)
        meta = store.meta(key) if good else {}
        facts = {"label": meta.get("label", ""), "seconds": meta.get("cost", {}).get("seconds")}
        yield {"key": key, "ok": good, "files": len(files), "bytes": size} | facts


def verify(store: Store) -> Iterator[Problem]:
    """Read every file of every result and compare."""
    for folder in folders(store):
        key = str(folder.relative_to(store.root))
        if not (folder / MARKER).exists():
            yield Problem(key, "unfinished", "left by a killed run; the next run or gc removes it")
            continue
        try:
            files = store.marker(key).get("files")
        except StoreError as error:
            yield Problem(f"{key}/{MARKER}", "damaged", str(error))
            continue
        if files is None:
            yield Problem(key, "unknown", "no hashes recorded: written by an older version")
            continue
        found = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
        for name in sorted(files.keys() - found.keys()):
            yield Problem(f"{key}/{name}", "missing", "the file is gone")
        for name in sorted(found.keys() - files.keys() - {MARKER}):
            yield Problem(f"{key}/{name}", "extra", "no run wrote this file here")
        for name in sorted(files.keys() & found.keys()):
            yield from compare(found[name], files[name], f"{key}/{name}")
    for rest in sorted((store.root / TEMPORARY).glob("*")):
        yield Problem(f"{TEMPORARY}/{rest.name}", "unfinished", "left by a killed run, unless one runs; gc removes it")


def gc(store: Store, keep: Callable[[str], bool] | None = None, *, dry: bool = False) -> list[str]:
    """Remove what no run can use: unfinished and damaged results, leftovers, and results that `keep` denies.

    Attacked weights and found prompts of NSFW suites go, too, once their images are scored; their results stay.

    Args:
        keep: says of a key whether to keep its result; without it all good results stay.
        dry: only say what would go.

    Raises:
        FolderError: a run uses the store, or it is none.
        StoreError: something cannot be removed.
    """
    with store.existing().held(fcntl.LOCK_EX) as got:
        if not got:
            raise FolderError(f"expected the store {store.root} to be free, got a run that uses it: wait for it.")
        names = {folder: str(folder.relative_to(store.root)) for folder in folders(store)}
        gone = [f for f, key in names.items() if not store.has(key) or (keep is not None and not keep(key))]
        gone += [*sorted((store.root / TEMPORARY).glob("*")), *sorted(store.root.glob("*/*.lock"))]
        for path in [] if dry else gone:
            store.remove(path)
        return [str(path.relative_to(store.root)) for path in gone] + leftovers.sweep(store, dry=dry)


def folders(store: Store) -> list[Path]:
    """Folders of results, finished or not."""
    return [f for f in sorted(store.root.glob("*/*")) if f.is_dir() and f.parent.name != TEMPORARY]


def compare(file: Path, facts: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """The problem of one file, if it has one."""
    try:
        size = file.stat().st_size
        if size != facts["size"]:
            yield Problem(
                name, "truncated" if size < facts["size"] else "altered", f"{size} bytes, {facts['size']} were written"
            )
        elif sha256(file) != facts["sha256"]:
            yield Problem(name, "altered", "another sha256 than was written")
    except OSError as error:
        yield Problem(name, "missing", f"cannot be read: {error}")
