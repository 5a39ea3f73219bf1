"""Results by key: has, get, put. A result exists when its completion marker does and its files are what it says.

    <store>/<kind>/<plugin-params-sha>/   payload files (safetensors, parquet, JSON)
    <store>/<kind>/<plugin-params-sha>/done.json   written last, by rename: size and sha256 of every payload file
    <store>/<kind>/<plugin-params-sha>.lock   while a process computes it

Nothing is ever unpickled. A folder without its marker is unfinished work of a killed run and is replaced, and so is
a result with a file that is missing, truncated or altered. `has` compares sizes and times, and reads a file only
when these differ; `upkeep.verify` reads all.

Locks are `flock`: the system releases them when their owner dies. On NFS they hold between hosts only where the
mount supports them (Linux 2.6.12 or newer, without `local_lock`); where they do not exist two runs may compute a
result twice, but the first to finish stays: results are moved in place whole.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from benchmark.errors import FolderError, StoreError
from benchmark.plan.gc_pause import uncollected
from benchmark.store.files import contents, describe, empty, flock, sha256, sync, write_whole

MARKER = "done.json"
OWNER = "titer-store.json"
TEMPORARY = "tmp"
SEAL, FILES = b', "sha256": "', b'"files": '
DECODER = json.JSONDecoder()

log = logging.getLogger(__name__)


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
                write_whole(owner, json.dumps({"schema": 1}))
            except OSError as error:
                raise unwritable(self.root, error) from error
        return self

    def existing(self) -> "Store":
        """This store, which must be there.

        Raises:
            FolderError: there is none.
        """
        if not (self.root / OWNER).is_file():
            raise FolderError(f"expected a titer store at {self.root}, got none: choose another with --store.")
        return self

    @contextmanager
    def using(self) -> Iterator[None]:
        """Hold the store for a run, so that `upkeep.gc` leaves it alone; any number of runs may.

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

        The file says who for people; the lock is the system's. Look again with `has` once it is held.
        """
        path = self.beside(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if not flock(handle, fcntl.LOCK_EX):
                os.close(handle)
                yield False
                return
            with suppress(FileNotFoundError):  # its last owner may have removed it between open and flock
                if os.path.samestat(os.fstat(handle), path.stat()):
                    break
            os.close(handle)
        try:
            os.truncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
            yield True
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def locker(self, key: str) -> str:
        """Who computes a result, for people: process and host."""
        try:
            return self.beside(key).read_text() or "unknown"
        except OSError:
            return "unknown"

    def beside(self, key: str) -> Path:
        """The lock file of a result."""
        return self.root / f"{key}.lock"

    def path(self, key: str) -> Path:
        """Where a result lies or will lie."""
        return self.root / key

    def has(self, key: str) -> bool:
        """True when the result is finished and its files have the recorded sizes and, if touched since, contents."""
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
        """True when a file is as recorded. It is read only if its time is not the recorded one, and once."""
        try:
            found = os.stat(file)  # noqa: PTH116  # a path object costs more than the call, and this is called often
            if found.st_size != facts["size"]:
                return False
            if found.st_mtime_ns == facts["mtime_ns"]:
                return True
            size, time, known = self.read.get(file, (-1, -1, ""))
            if (size, time) != (found.st_size, found.st_mtime_ns):
                known = sha256(Path(file))
                self.read[file] = (found.st_size, found.st_mtime_ns, known)
        except OSError:
            return False
        return bool(known == facts["sha256"])

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
        if is_sealed(content) and content.count(FILES) == 1:
            text = content[content.index(FILES) + len(FILES) :].decode()
            found: Mapping[str, Any] = DECODER.raw_decode(text)[0]
            return found
        return dict(self.marker(key).get("files", {}))

    def marker(self, key: str) -> dict[str, Any]:
        """The completion marker: the meta, `files`, and `sha256` of both; older stores have only the meta.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        path = self.path(key) / MARKER
        try:
            content = path.read_bytes()
            found = json.loads(content)
            good = isinstance(found, dict) and (is_sealed(content) or found.get("sha256", "") == recorded(found))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(f"expected a finished result {key} in {self.root}, found none: run it again.") from error
        except (ValueError, OSError) as error:
            raise StoreError(f"expected JSON in {path}, got {error}: delete that folder and run again.") from error
        if not good:
            raise StoreError(f"expected {path} as it was written, got another content: run again.")
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
            for file in temporary.rglob("*"):
                sync(file)
            marker = json.loads(json.dumps({**meta, "files": describe(temporary)}))
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists() and not self.has(key):
                final.rename(old)
            if not final.exists():
                temporary.rename(final)
                write_whole(final / MARKER, json.dumps(marker | {"sha256": digest(marker)}, sort_keys=True))
        except (OSError, SafetensorError) as error:
            if self.has(key):  # another process was first, where there are no locks
                return
            raise StoreError(
                f"expected to write {key} to {self.root}, got {error}: free some space or choose another --store."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

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
                if path.is_dir():
                    path.rmdir()
                elif str(path.relative_to(folder)) not in {*files, MARKER}:
                    path.unlink()
        except OSError as error:
            raise StoreError(f"expected to shrink {folder}, got {error}: check its permissions.") from error

    def aside(self) -> Path:
        """A new name for a folder that is no result yet, or no more."""
        return self.root / TEMPORARY / uuid.uuid4().hex

    def results(self) -> Iterator[str]:
        """The keys of all results with a marker."""
        for marker in sorted(self.root.glob(f"*/*/{MARKER}")):
            if marker.parent.parent.name != TEMPORARY:
                yield str(marker.parent.relative_to(self.root))

    def remove(self, path: Path) -> None:
        """Remove a folder or file, a folder's marker first."""
        try:
            if path.is_dir():
                (path / MARKER).unlink(missing_ok=True)
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise StoreError(f"expected to remove {path}, got {error}: check its permissions.") from error


def unwritable(root: Path, error: OSError) -> FolderError:
    """The error of a store that cannot be written."""
    why = error.strerror or error
    return FolderError(
        f"expected a store that can be written at {root}, got {why}: choose another --store, or make room or rights."
    )


def is_sealed(content: bytes) -> bool:
    """True for a marker that is, byte for byte, as `put` wrote it; another may still hold the same."""
    start = content.rfind(SEAL)
    end = start + len(SEAL) + 65  # 64 hex digits and a quotation mark
    if start < 0 or content[end - 1 : end] != b'"':
        return False
    rest = hashlib.sha256(content[:start])
    rest.update(content[end:])
    return rest.hexdigest().encode() == content[start + len(SEAL) : end - 1]


def recorded(marker: Mapping[str, Any]) -> str:
    """The hash that a marker must hold; one of an older version holds none."""
    return digest(marker) if "files" in marker else ""


def digest(marker: Mapping[str, Any]) -> str:
    """The hash of a marker's content, less that hash."""
    text = json.dumps({name: value for name, value in marker.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
