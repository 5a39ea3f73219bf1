"""Results by key: has, get, put. A result exists when its completion marker does.

    <store>/<kind>/<plugin-params-sha>/   payload files (safetensors, parquet, JSON)
    <store>/<kind>/<plugin-params-sha>/done.json   written last, by rename

Nothing is ever unpickled. A folder without its marker is unfinished work of a killed run and is replaced.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.errors import FolderError, StoreError

MARKER = "done.json"
OWNER = "titer-store.json"


class Store:
    """A folder of finished results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> "Store":
        """Make the folder ours, or refuse one that holds something else.

        Raises:
            FolderError: the folder is not empty and not a store.
        """
        owner = self.root / OWNER
        if not owner.exists():
            if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
                raise FolderError(
                    f"expected a titer store or an empty folder at {self.root}, got something else: "
                    "choose another with --store."
                )
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(owner, json.dumps({"schema": 1}))
        return self

    def path(self, key: str) -> Path:
        """Where a result lies or will lie."""
        return self.root / key

    def has(self, key: str) -> bool:
        """True when the result is finished."""
        return (self.path(key) / MARKER).is_file()

    def meta(self, key: str) -> dict[str, Any]:
        """What was written beside the result when it was finished.

        Raises:
            StoreError: there is no finished result, or its marker is damaged.
        """
        try:
            meta: dict[str, Any] = json.loads((self.path(key) / MARKER).read_text())
        except FileNotFoundError as error:
            raise StoreError(f"expected a finished result {key} in {self.root}, found none: run it again.") from error
        except json.JSONDecodeError as error:
            raise StoreError(
                f"expected JSON in {self.path(key) / MARKER}: delete that folder and run again."
            ) from error
        return meta

    def put(self, key: str, write: Callable[[Path], None], meta: Mapping[str, Any]) -> None:
        """Let `write` fill a temporary folder, then move it in place and mark it done."""
        final = self.path(key)
        temporary = self.root / "tmp" / uuid.uuid4().hex
        temporary.mkdir(parents=True)
        try:
            write(temporary)
            for file in temporary.rglob("*"):
                sync(file)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists() and not self.has(key):
                shutil.rmtree(final)
            if not final.exists():
                temporary.rename(final)
                write_whole(final / MARKER, json.dumps(dict(meta), sort_keys=True))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def keys(self) -> Iterator[str]:
        """All finished results."""
        for marker in sorted(self.root.glob(f"*/*/{MARKER}")):
            yield str(marker.parent.relative_to(self.root))


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)
