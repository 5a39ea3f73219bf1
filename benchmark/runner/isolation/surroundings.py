"""What of the process decides later numbers, or where they go: read before a plug-in runs, put back after it."""

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as torch_module

KEPT: list[Any] = []  # inference modes that were entered to leave another: they end with the process


@dataclass(frozen=True)
class Setting:
    """One thing to keep: its name for people, how to read it, and how to write back what was read."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def attribute(owner: Any, name: str, called: str = "") -> Setting:
    """A setting that is an attribute."""
    return Setting(
        called or f"{owner.__name__}.{name}", lambda: getattr(owner, name), lambda v: setattr(owner, name, v)
    )


def popped(length: Callable[[], int], pop: Callable[[], object]) -> Callable[[int], None]:
    """What makes a stack as long as it was."""

    def write(wanted: int) -> None:
        while length() > wanted:
            pop()

    return write


def autocast(device: str) -> tuple[Setting, ...]:
    """Mixed precision on a kind of device."""
    return (
        Setting(
            f"autocast on {device}",
            lambda: torch.is_autocast_enabled(device),
            lambda v: torch.set_autocast_enabled(device, v),
        ),
        Setting(
            f"the dtype of autocast on {device}",
            lambda: torch.get_autocast_dtype(device),
            lambda v: torch.set_autocast_dtype(device, v),
        ),
    )


def hooks(name: str) -> Setting:
    """The hooks that torch runs on every module."""
    held: dict[Any, Any] = getattr(torch_module, name)

    def write(before: dict[Any, Any]) -> None:
        held.clear()
        held.update(before)

    return Setting(f"hooks on all modules ({name})", lambda: dict(held), write)


def write_inference_mode(wanted: bool) -> None:
    """Leave, or enter, inference mode."""
    KEPT.append(torch.inference_mode(wanted))
    KEPT[-1].__enter__()


def flushes_denormals() -> bool:
    """Whether the processor takes the smallest numbers for 0."""
    return bool((torch.tensor([1e-39]) * torch.ones(1)).item() == 0)


def umask() -> int:
    """The mode bits that new files lack."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def folder() -> str:
    """The working folder; empty if it was deleted."""
    with suppress(OSError):
        return os.getcwd()  # noqa: PTH109  # text, to compare
    return ""


def go_back(to: str) -> None:
    """Change to a folder, if it is there."""
    with suppress(OSError):
        os.chdir(to)


def handlers() -> dict[int, Any]:
    """What each signal does."""
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def set_handlers(before: dict[int, Any]) -> None:
    """Put back what differs; only the main thread may, and only it could change them."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers().items():
            if handler != before[number] and before[number] is not None:  # None: set by a library in C
                signal.signal(number, before[number])


SETTINGS: tuple[Setting, ...] = (
    Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting(
        "the default device",
        lambda: str(torch.get_default_device()),
        lambda v: torch.set_default_device(None if v == "cpu" else v),
    ),
    Setting(
        "modes of torch functions",
        torch._C._len_torch_function_stack,
        popped(torch._C._len_torch_function_stack, torch._C._pop_torch_function_stack),
    ),
    Setting(
        "modes of torch's dispatcher",
        torch._C._len_torch_dispatch_stack,
        popped(torch._C._len_torch_dispatch_stack, torch._C._pop_torch_dispatch_stack),
    ),
    Setting("inference mode", torch.is_inference_mode_enabled, write_inference_mode),
    Setting("the grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    Setting("the precision of products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("the flushing of denormal numbers", flushes_denormals, torch.set_flush_denormal),
    *(attribute(torch.backends.cudnn, name, f"torch.backends.cudnn.{name}") for name in ("enabled", "benchmark")),
    attribute(torch.backends.cudnn, "deterministic", "torch.backends.cudnn.deterministic"),
    Setting("flash attention", torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    Setting(
        "memory-efficient attention",
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    Setting("plain attention", torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    *autocast("cpu"),
    *autocast("cuda"),
    *(hooks(name) for name in sorted(vars(torch_module)) if name.startswith("_global_") and name.endswith("_hooks")),
    Setting("the working folder", folder, go_back),
    Setting("the umask", umask, os.umask),
    Setting("signal handlers", handlers, set_handlers),
    Setting(
        "an alarm",
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda _: signal.setitimer(signal.ITIMER_REAL, 0),
    ),
    Setting("the limit of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    attribute(sys, "stdout"),
    attribute(sys, "stderr"),
)


NUMERIC = {  # what another process of the same run takes over
    *("the number of threads", "deterministic algorithms", "the precision of products"),
    *(f"torch.backends.cudnn.{name}" for name in ("enabled", "benchmark", "deterministic")),
}


def numeric() -> dict[str, Any]:
    """The settings that change numbers, by name."""
    return {setting.name: setting.read() for setting in SETTINGS if setting.name in NUMERIC}


def adopt(settings: Mapping[str, Any]) -> None:
    """Take over such settings."""
    for setting in SETTINGS:
        if setting.name in settings:
            setting.write(settings[setting.name])


def read() -> list[Any]:
    """Every setting as it is."""
    return [setting.read() for setting in SETTINGS]


def restore(before: list[Any]) -> list[str]:
    """Put back every setting that differs; their names."""
    found = []
    for setting, value in zip(SETTINGS, before, strict=True):
        if setting.read() != value:
            setting.write(value)
            found.append(setting.name)
    return found


class Aside:
    """What a plug-in, and a library that it imports, may change: put back without a word.

    The global generators of random numbers, and variables of the environment that were there before.
    """

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.torch, self.python, self.numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Put it back."""
        os.environ.update({k: v for k, v in self.environment.items() if os.environ.get(k) != v})
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


def seed(number: int) -> None:
    """Seed the global generators, so that a plug-in that draws from them depends on its task alone."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
