"""Results by key: has, get, put. A result exists when its completion marker does and its files are what it says.

    <store>/<kind>/<plugin-params-sha>/   payload files (safetensors, parquet, JSON)
    <store>/<kind>/<plugin-params-sha>/done.json   written last, by rename: size and sha256 of every payload file
    <store>/<kind>/<plugin-params-sha>.lock   while a process computes it

Nothing is ever unpickled. A folder without its marker is unfinished work of a killed run and is replaced, and so is
a result with a file that is missing, truncated or altered, and one under the name of another. `has` compares sizes
and times, reads small files once, and a large one when its time differs; `maintenance.verify` reads all.

Where there are no locks two runs may compute a result twice, but the first to finish stays: results are moved in
place whole.
"""

import fcntl
import json
import os
import stat
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from benchmark.errors import FolderError, StoreError
from benchmark.plan.gc_pause import uncollected
from benchmark.store import names
from benchmark.store.files import contents, describe, discard, empty, sha256, share, sync, write_whole
from benchmark.store.locks import UNKNOWN, flock, holder, locked
from benchmark.store.marker import FILES, digest, is_identity_of, is_of, is_sealed, recorded

MARKER = "done.json"
OWNER = "titer-store.json"
SMALL = 2**16  # bytes of a file that is read before it is believed: scores, losses, prompts
AGAIN = "the next run computes it again"
DECODER = json.JSONDecoder()


class Store:
    """A folder of finished results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.read: dict[str, tuple[int, int, str]] = {}  # size, time and hash of files that were read before

    def open(self) -> "Store":
        """Make the folder ours, or refuse one that holds something else.

        Raises:
            FolderError: the folder is not empty and not a store, or cannot be made.
        """
        owner = self.root / OWNER
        if not owner.exists():
            if self.root.exists() and (not self.root.is_dir() or not empty(self.root)):
                raise FolderError(
                    f"expected a titer store or an empty folder at {self.root}, got something else: "
                    "choose another with --store."
                )
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                self.own()
            except OSError as error:
                raise unwritable(self.root, error) from error
        return self

    def own(self) -> None:
        """Mark the folder as a store."""
        write_whole(self.root / OWNER, json.dumps({"schema": 1}))

    def existing(self) -> "Store":
        """This store, which must be there.

        Raises:
            FolderError: there is none.
        """
        if not (self.root / OWNER).is_file():
            raise FolderError(f"expected a titer store at {self.root}, got none: choose another with --store.")
        return self

    def refuse(self, folder: Path, option: str = "--out") -> None:
        """Refuse a folder for something else that lies in this store.

        Raises:
            FolderError: it does.
        """
        root, asked = self.root.resolve(), folder.resolve()
        if asked == root or root in asked.parents:
            raise FolderError(
                f"expected a folder outside of the store {self.root}, got {folder}: choose another {option}."
            )

    @contextmanager
    def using(self) -> Iterator[None]:
        """Hold the store for a run, so that `maintenance.gc` leaves it alone; any number of runs may.

        Raises:
            FolderError: the store cannot be written, or `gc` works on it.
        """
        with self.open().held(fcntl.LOCK_SH) as got:
            if not got:
                raise FolderError(f"expected the store {self.root} to be free, got one that `gc` works on: wait.")
            try:
                write_whole(self.root / f".probe.{uuid.uuid4().hex[:8]}", "").unlink()
            except OSError as error:
                raise unwritable(self.root, error) from error
            yield

    @contextmanager
    def held(self, how: int) -> Iterator[bool]:
        """Lock the whole store, shared or alone; False when somebody holds it otherwise."""
        handle = os.open(self.root / OWNER, os.O_RDONLY)
        try:
            yield flock(handle, how)
        finally:
            os.close(handle)

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Lock one result against other processes while it is computed; False when another holds it.

        Look again with `has` once it is held.
        """
        with locked(self.beside(key)) as ours:
            yield ours

    def abandoned(self, keys: Container[str]) -> list[str]:
        """Those of many keys whose lock a dead process left behind; the locks are removed."""
        found = []
        for path in names.locks(self.root):
            key = str(path.relative_to(self.root)).removesuffix(".lock")
            if key in keys and self.locker(key) != UNKNOWN:
                with self.lock(key) as ours:
                    found += [key] if ours and not self.has(key) else []
        return found

    def locker(self, key: str) -> str:
        """Who computes a result, for people: process and host."""
        return holder(self.beside(key))

    def beside(self, key: str) -> Path:
        """The lock file of a result."""
        return self.root / f"{key}.lock"

    def path(self, key: str) -> Path:
        """Where a result lies or will lie."""
        return self.root / key

    def has(self, key: str) -> bool:
        """True when the result is finished, is of this key, and its files are as recorded, see `intact`."""
        try:
            return self.whole(key, self.files(key))
        except StoreError:
            return False

    def whole(self, key: str, files: Mapping[str, Any]) -> bool:
        """True when all files of a result are as recorded."""
        return all(self.intact(f"{self.root}/{key}/{name}", facts) for name, facts in files.items())

    def among(self, keys: Iterable[str]) -> Iterator[str]:
        """Those of many keys that have a folder, finished or not: folders are listed once, nothing else is touched."""
        listed: dict[str, set[str]] = {}
        for key in keys:
            kind, _, name = key.partition("/")
            if kind not in listed:
                listed[kind] = set()
                with suppress(OSError):
                    listed[kind] = {entry.name for entry in os.scandir(self.root / kind)}
            if name in listed[kind]:
                yield key

    def finished(self, keys: Iterable[str]) -> set[str]:
        """Those of many keys that `has` takes."""
        with uncollected():
            return {key for key in self.among(keys) if self.has(key)}

    def intact(self, file: str, facts: Mapping[str, Any]) -> bool:
        """True when a file is as recorded. It is read if it is small or its time is not the recorded one, and once.

        Bits that rot leave the time as it was: a large file with such is found by `maintenance.verify`.
        """
        try:
            found = os.stat(file)  # noqa: PTH116  # a path object costs more than the call, and this is called often
            if found.st_size != facts["size"] or not stat.S_ISREG(found.st_mode):
                return False
            if found.st_size > SMALL and found.st_mtime_ns == facts["mtime_ns"]:
                return True
            size, time, known = self.read.get(file, (-1, -1, ""))
            if (size, time) != (found.st_size, found.st_mtime_ns):
                known = sha256(file, found.st_size)
                self.read[file] = (found.st_size, found.st_mtime_ns, known)
            return bool(known == facts["sha256"])
        except (OSError, KeyError, TypeError, ValueError):  # facts that no run wrote
            return False

    def meta(self, key: str) -> dict[str, Any]:
        """What was written beside the result when it was finished.

        Raises:
            StoreError: there is no finished result, or its marker is damaged.
        """
        return {name: value for name, value in self.marker(key).items() if name not in ("files", "sha256")}

    def files(self, key: str) -> Mapping[str, Any]:
        """Size, time and hash of each file of a finished result, by name; the rest of its marker is not parsed.

        Raises:
            StoreError: as `marker`.
        """
        try:
            content = contents(f"{self.root}/{key}/{MARKER}")
        except OSError:
            content = b""
        if is_sealed(content) and content.count(FILES) == 1 and is_of(content, key):
            text = content[content.index(FILES) + len(FILES) :].decode()
            with suppress(ValueError, RecursionError):
                found: Mapping[str, Any] = DECODER.raw_decode(text)[0]
                return found
        return self.marker(key).get("files") or {}

    def marker(self, key: str) -> dict[str, Any]:
        """The completion marker: the meta, `files`, and `sha256` of both; older stores have only the meta.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        path = self.path(key) / MARKER
        try:
            content = contents(str(path))
            found = json.loads(content)
            good = isinstance(found, dict) and (is_sealed(content) or found.get("sha256", "") == recorded(found))
            good = good and isinstance(found.get("files", {}), dict)
            own = good and is_identity_of(found, key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(f"expected a finished result {key} in {self.root}, found none: run it again.") from error
        except (ValueError, OSError, RecursionError) as error:
            raise StoreError(f"expected JSON in {path}, got {error}: {AGAIN}.") from error
        if not good:
            raise StoreError(f"expected {path} as it was written, got another content: {AGAIN}.")
        if not own:
            raise StoreError(f"expected the result {key} in its folder, got that of another key: {AGAIN}.")
        marker: dict[str, Any] = found
        return marker

    def put(self, key: str, write: Callable[[Path], None], meta: Mapping[str, Any]) -> None:
        """Let `write` fill a temporary folder, then move it in place and mark it done.

        Raises:
            StoreError: the disk is full, or the store cannot be written.
        """
        final, temporary, old = self.path(key), self.aside(), self.aside()
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            share(temporary)
            for file in temporary.rglob("*"):
                sync(file)
            marker = json.loads(json.dumps({**meta, "files": describe(temporary)}))
            final.parent.mkdir(parents=True, exist_ok=True)
            if not (self.root / OWNER).exists():  # somebody has deleted the store meanwhile
                self.own()
            if os.path.lexists(final) and not self.has(key):
                final.rename(old)
            if not os.path.lexists(final):
                temporary.rename(final)
                write_whole(final / MARKER, json.dumps(marker | {"sha256": digest(marker)}, sort_keys=True))
        except (OSError, SafetensorError) as error:
            if self.has(key):  # another process was first, where there are no locks
                return
            raise StoreError(
                f"expected to write {key} to {self.root}, got {error}: free some space or choose another --store."
            ) from error
        finally:
            for left in (temporary, old):
                with suppress(OSError):
                    discard(left)

    def shrink(self, key: str, kept: Iterable[str], **more: Any) -> None:
        """Delete the files of a result but those of these names, and note `more` in its marker. It stays finished.

        Killed in between, it is finished too, with files too many: `shrink` it again.

        Raises:
            StoreError: there is no such result, or it cannot be changed.
        """
        found, folder = self.marker(key), self.path(key)
        files = {name: facts for name, facts in found.pop("files", {}).items() if name in set(kept)}
        seal, marker = found.pop("sha256", ""), found | more | {"files": files}
        try:
            if digest(marker) != seal:
                write_whole(folder / MARKER, json.dumps(marker | {"sha256": digest(marker)}, sort_keys=True))
            for path in sorted(folder.rglob("*"), reverse=True):  # what lies in a folder before the folder
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                elif str(path.relative_to(folder)) not in {*files, MARKER}:
                    path.unlink()
        except OSError as error:
            raise StoreError(f"expected to shrink {folder}, got {error}: check its permissions.") from error

    def note(self, key: str, **more: Any) -> None:
        """Note `more` in the marker of a result; its files stay as they are.

        Raises:
            StoreError: there is no such result, or it cannot be changed.
        """
        self.shrink(key, self.marker(key).get("files", {}), **more)

    def aside(self) -> Path:
        """A new name for a folder that is no result yet, or no more."""
        return self.root / names.TEMPORARY / uuid.uuid4().hex

    def results(self) -> Iterator[str]:
        """The keys of all results with a marker."""
        for folder in names.results(self.root, through_links=True):
            if os.path.lexists(folder / MARKER):
                yield str(folder.relative_to(self.root))

    def remove(self, path: Path) -> None:
        """Remove a folder or file of the store, a folder's marker first. Of a link, the link goes alone.

        Raises:
            StoreError: it cannot be removed, or lies behind a link.
        """
        if any(folder.is_symlink() for folder in path.parents if self.root in folder.parents):
            raise StoreError(f"expected {path} in the store, got one behind a link: remove it yourself.")
        try:
            if not path.is_symlink() and path.is_dir() and not (path / MARKER).is_dir():
                (path / MARKER).unlink(missing_ok=True)
            discard(path)
        except OSError as error:
            raise StoreError(f"expected to remove {path}, got {error}: check its permissions.") from error


def unwritable(root: Path, error: OSError) -> FolderError:
    """The error of a store that cannot be written."""
    why = error.strerror or error
    return FolderError(
        f"expected a store that can be written at {root}, got {why}: choose another --store, or make room or rights."
    )
