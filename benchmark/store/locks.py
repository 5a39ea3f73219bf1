"""Locks between processes: on a store, and on a result while it is computed.

They are `flock`: the system releases them when their owner dies. On NFS they hold between hosts only where the mount
supports them (Linux 2.6.12 or newer, without `local_lock`).
"""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # the last of some FUSE file systems
UNKNOWN = "unknown"

log = logging.getLogger(__name__)


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


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock by a file that is there as long as it is held; False when another process holds it.

    The file says who for people; the lock is the system's.
    """
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


def holder(path: Path) -> str:
    """Who holds the lock of a file, for people: process and host."""
    try:
        return path.read_text() or UNKNOWN
    except OSError:
        return UNKNOWN
