"""Files that may be read: regular ones of bounded size. A pipe would wait for ever, and a device has no end."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def is_file(path: Path) -> bool:
    """Whether there is a regular file; a name that no file can have is none."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a name that no folder can have is none."""
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False


@contextmanager
def opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """A regular file of at most `most` bytes, opened without waiting for anybody.

    Raises:
        OSError: it cannot be opened, is no regular file, or is larger.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: to open a device can do something
        raise OSError("it is no regular file")
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no regular file")
        if found.st_size > most:
            raise OSError(f"it has {found.st_size:,} bytes, at most {most:,} are read")
        yield file


def contents(path: Path, most: int) -> bytes:
    """The bytes of a regular file; no more than `most` are read, even if it grows meanwhile.

    Raises:
        OSError: as `opened`.
    """
    with opened(path, most) as file:
        return file.read(most)
