"""Files that are there whole or not at all, and what they hold."""

import errno
import hashlib
import os
import shutil
import stat
import uuid
from pathlib import Path
from typing import Any

NOWAIT = getattr(os, "O_NONBLOCK", 0)
BLOCK = 2**20


def empty(folder: Path) -> bool:
    """True for a folder that holds nothing but what a killed `write_whole` left."""
    return not any(not (p.name.startswith(".") and ".json." in p.name) for p in folder.iterdir())


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size, time and hash of every file below a folder."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    stats = {name: file.stat() for name, file in files.items()}
    return {
        name: {"size": stats[name].st_size, "mtime_ns": stats[name].st_mtime_ns, "sha256": sha256(file)}
        for name, file in files.items()
    }


def contents(file: str) -> bytes:
    """All of a small file, in a third of the time that `Path.read_bytes` takes. No pipe or device is waited for.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    handle = os.open(file, os.O_RDONLY | NOWAIT)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no regular file", file)
        first = os.read(handle, found.st_size + 1)
        if len(first) == found.st_size:
            return first
        parts = [first, *iter(lambda: os.read(handle, BLOCK), b"")]  # it grew, or is larger than one read gives
    finally:
        os.close(handle)
    return b"".join(parts)


def sha256(file: Path | str, size: int | None = None) -> str:
    """The hash of a file's content; `size` is its bytes where they are known."""
    if (os.stat(file).st_size if size is None else size) <= BLOCK:  # noqa: PTH116
        return hashlib.sha256(contents(str(file))).hexdigest()
    with open(file, "rb") as handle:  # noqa: PTH123
        return hashlib.file_digest(handle, "sha256").hexdigest()


def share(folder: Path) -> None:
    """Give every file below a folder the rights that a new one has there, by the umask or the folder's own rules.

    safetensors makes files that their owner alone can read, which would break a store that several people share.
    """
    probe = folder / f".probe.{uuid.uuid4().hex[:8]}"
    probe.touch(exist_ok=False)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def discard(path: Path) -> None:
    """Remove a file, a link (not what is behind it) or a folder with all that is in it; fine if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return path
