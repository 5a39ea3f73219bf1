"""A Ray cluster for a while, and how its cores and GPUs are shared out among workers."""

import logging
import os
import secrets
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.errors import ConfigError, WorkerError

ON_A_GPU = 2  # workers on a GPU where nobody says how many; `schedule` decides how many of them fit
STARTS = 3  # tries to start Ray
REACHED = 10.0  # seconds within which RAY_ADDRESS must answer
LOCAL = {"include_dashboard": False, "object_store_memory": 128 * 2**20}  # little shared memory: our objects are small

log = logging.getLogger(__name__)


@contextmanager
def cluster(ray: Any) -> Iterator[None]:
    """Ray, for a while: the one this process is connected to, the one at RAY_ADDRESS, or one of our own.

    Raises:
        ConfigError: there is none at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    lock_up_token()
    where = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if where:
            connect(ray, where, quiet)
        else:
            start(ray, quiet)
        with stopped_alike():
            yield
    finally:
        ray.shutdown()


def start(ray: Any, options: dict[str, Any]) -> None:
    """Start a cluster of this machine, which ends with this process. On a busy machine Ray may give up on itself.

    Raises:
        WorkerError: it did so each time.
    """
    for left in reversed(range(STARTS)):
        try:
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves them beside any other work
            ray.init(address="local", _temp_dir=str(own_folder() / "ray"), **LOCAL, **options)
            return
        except Exception as error:  # Ray raises no class of its own here
            ray.shutdown()
            if not left:
                why = " ".join(str(error).split())
                raise WorkerError(
                    f"expected Ray to start on this machine, got {why} Start it before: ray start --head."
                ) from error
            log.warning("Ray did not start; trying again")


def own_folder() -> Path:
    """A folder that nobody else can enter, for Ray's sockets and logs, which it lets everybody write.

    Its name is short, for a socket's path may have 107 letters; so it is not where `TMPDIR` may be.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or ("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()))
    folder = base / f"titer-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        return Path(tempfile.mkdtemp(prefix="titer-", dir=base))  # somebody else was there first
    return folder


def lock_up_token() -> None:
    """Let nobody else read the token that opens Ray, and make one if there is none: Ray's own would be readable."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # the user's own
    file = Path.home() / ".ray" / "auth_token"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(handle, secrets.token_hex(32).encode())
            os.close(handle)
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            file.chmod(0o600)
    except OSError as error:
        log.warning("cannot keep %s from others: %s", file, error)


@contextmanager
def stopped_alike() -> Iterator[None]:
    """Inside the block SIGTERM does what Ctrl-C does: Ray's own answer ends in a crash that loses its workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def connect(ray: Any, where: str, options: dict[str, Any]) -> None:
    """Use the cluster that runs at RAY_ADDRESS.

    Raises:
        ConfigError: there is none.
    """
    host, _, port = where.rpartition(":")
    try:
        if host and "/" not in host and port.isdigit():  # Ray itself would go on trying for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
        ray.init(address="auto", **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"expected a Ray cluster at RAY_ADDRESS={where}, got {error}: start it, or unset RAY_ADDRESS."
        ) from error


@dataclass(frozen=True)
class Fleet:
    """How many workers, and what each gets: cores and a share of a GPU to ask Ray for, threads to compute with."""

    count: int
    cores: float
    gpu: float
    threads: int


def fleet(cores: float, gpus: float, workers: int | None, *, on_gpu: bool, room: int) -> Fleet:
    """Share a cluster's cores and GPUs out.

    Args:
        cores: of all machines.
        gpus: of all machines.
        workers: how many are wanted; None for one a core, or two a GPU.
        on_gpu: the tasks compute on GPUs.
        room: how many workers the machines' memory holds, for tasks that compute on cores.
    """
    count = workers or (int(gpus) * ON_A_GPU if on_gpu else max(1, min(int(cores), room)))
    threads = max(1, int(cores // count))
    if on_gpu:
        on_each = -(-count // max(int(gpus), 1))
        return Fleet(count, min(1.0, floor(cores / count, 2)), floor(1 / on_each, 4), threads)
    return Fleet(count, min(float(threads), floor(cores / count, 2)), 0.0, threads)


def floor(value: float, digits: int) -> float:
    """A share that Ray can count, never more than there is."""
    return int(value * 10**digits) / 10**digits
