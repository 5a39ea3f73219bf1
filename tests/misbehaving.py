"""A defense that breaks the contract in a chosen way; installed by `installed`, it is a plug-in of another package.

Differs   from nothing.
Protects  nothing.
"""

import atexit
import builtins
import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmark.types import Delta
from defenses.base import Defense

NAME = "unet.conv_in.weight"
DTYPES = {
    "f16": torch.float16,
    "f64": torch.float64,
    "int": torch.int64,
    "bool": torch.bool,
    "complex": torch.complex64,
}
HELD: list[Any] = []  # what it keeps alive


class Odd(BaseException):
    """An exception that no `except Exception` sees."""


def zero(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.zero_()


def swap(model: Any) -> None:
    weight = model.unet.conv_in.weight.data
    weight.copy_(weight.flip(0))


def replace(owner: Any, name: str) -> None:
    real = getattr(owner, name)
    setattr(owner, name, lambda *words, **more: real(*words, **more))


def forked(go_on: bool) -> None:
    if os.fork() == 0 and not go_on:
        time.sleep(60)
        os._exit(0)


def alter(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"


def blind(model: Any) -> None:
    torch.isfinite = lambda tensor: torch.ones((), dtype=torch.bool)  # type: ignore[assignment]


# What changes something that is not its own, and the words that must name it.
CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "zeroes the base": (zero, "unet.conv_in.weight"),
    "halves one tensor past the version counter": (lambda m: m.unet.conv_in.weight.data.mul_(0.5), NAME),
    "changes a number by numpy": (lambda m: np.put(m.vae.quant_conv.bias.numpy(), 0, 7.0), "vae.quant_conv.bias"),
    "reorders a tensor": (swap, NAME),
    "halves the schedule": (lambda m: m.scheduler.alphas_cumprod.mul_(0.5), "scheduler.alphas_cumprod"),
    "sets the scheduler's steps": (lambda m: m.scheduler.set_timesteps(3), "scheduler.timesteps"),
    "leaves the training mode": (lambda m: m.unet.train(), "unet.training"),
    "makes the base half": (lambda m: m.unet.half(), NAME),
    "asks for gradients": (lambda m: m.unet.conv_in.weight.requires_grad_(), NAME),
    "leaves a hook": (lambda m: m.unet.conv_in.register_forward_hook(lambda *_: None), "unet.conv_in._forward_hooks"),
    "leaves a hook on all modules": (
        lambda _: nn.modules.module.register_module_forward_hook(lambda *_: None),
        "_global_forward_hooks",
    ),
    "replaces a layer": (lambda m: setattr(m.unet, "conv_out", nn.Identity()), "unet._modules"),
    "replaces a forward": (lambda m: setattr(m.unet, "forward", None), "unet.forward"),
    "teaches the tokenizer": (lambda m: m.tokenizer.add_tokens(["zebra!"]), "tokenizer (its length)"),
    "pads on the other side": (lambda m: alter(m.tokenizer), "tokenizer (sides)"),
    "replaces torch.isfinite": (blind, "torch.isfinite"),
    "replaces a convolution": (lambda _: replace(F, "conv2d"), "torch.nn.functional.conv2d"),
    "replaces a method of Tensor": (lambda _: replace(torch.Tensor, "mul"), "Tensor.mul"),
    "overrides a method of Linear": (lambda _: replace(nn.Linear, "__call__"), "Linear.__call__"),
    "replaces a builtin": (lambda _: replace(builtins, "sum"), "builtins.sum"),
    "replaces a function of ours": (
        lambda _: replace(sys.modules["benchmark.diffusion"], "sample"),
        "diffusion.sample",
    ),
    "sets the default dtype": (lambda _: torch.set_default_dtype(torch.float64), "the default dtype"),
    "sets the default device": (lambda _: torch.set_default_device("meta"), "the default device"),
    "switches gradients off": (lambda _: torch.set_grad_enabled(False), "the grad mode"),
    "enters inference mode": (
        lambda _: (HELD.append(torch.inference_mode()), HELD[-1].__enter__()),
        "inference mode",
    ),
    "enters autocast": (lambda _: torch.autocast("cpu").__enter__(), "autocast on cpu"),
    "sets the threads": (lambda _: torch.set_num_threads(7), "the number of threads"),
    "asks for deterministic algorithms": (
        lambda _: torch.use_deterministic_algorithms(True),
        "deterministic algorithms",
    ),
    "changes the folder": (lambda _: os.chdir("/"), "the working folder"),
    "sets the umask": (lambda _: os.umask(0o777), "the umask"),
    "ignores Ctrl-C": (lambda _: signal.signal(signal.SIGINT, signal.SIG_IGN), "signal handlers"),
    "sets an alarm": (lambda _: signal.alarm(100), "an alarm"),
    "hides the output": (lambda _: setattr(sys, "stdout", None), "sys.stdout"),
}


def stuck(library: ctypes.CDLL) -> None:
    """Wait in C for a lock that nobody gives back; signals do not end it."""
    mutex = ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def exits(code: int) -> Callable[[], object]:
    return lambda: sys.exit(code)


def throws(error: BaseException) -> Callable[[], object]:
    def throw() -> None:
        raise error

    return throw


def swallow() -> None:
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            pass


# What tries to end the run from inside Python, and the words of its failure.
ENDINGS: dict[str, tuple[Callable[[], object], str]] = {
    "sys.exit(0)": (exits(0), "got SystemExit"),
    "sys.exit(3)": (exits(3), "got SystemExit"),
    "GeneratorExit": (throws(GeneratorExit()), "got GeneratorExit"),
    "an exception of its own": (throws(Odd("odd")), "got Odd"),
    "a KeyboardInterrupt of its own": (throws(KeyboardInterrupt()), "got KeyboardInterrupt"),
    "a surrogate": (throws(ValueError("bad \ud800 text \x1b[31m")), "ValueError: bad ? text"),
    "five megabytes": (throws(ValueError("y" * 5_000_000)), "ValueError"),
}

# What ends, blocks or soils its process.
DEATHS: dict[str, Callable[[], object]] = {
    "os._exit(0)": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "closes the output": lambda: (sys.stdout.close(), sys.stderr.close()),
    "closes everything": lambda: os.closerange(3, 200),
    "a thread": lambda: threading.Thread(target=time.sleep, args=(1000,)).start(),
    "at exit": lambda: atexit.register(os._exit, 7),
    "a forked process": lambda: forked(go_on=False),
    "a second runner": lambda: forked(go_on=True),
    "prints": lambda: sys.stdout.write("x" * 1_000_000),
    "hangs in C": lambda: stuck(ctypes.CDLL(None)),
    "hangs in C with Python's lock": lambda: stuck(ctypes.PyDLL(None)),
    "swallows everything": swallow,
}


@dataclass(frozen=True, kw_only=True)
class Bad(Defense):
    """Does what `how` says, then returns a small change."""

    how: str

    version = 1
    fidelity = "reconstructed"
    matched = "follows no paper"

    def protect(self, model: Any, concept: Any, data: Any, *, rng: Any, report: Any) -> Delta:
        report(step=1, total=1, loss=0.5)
        change = torch.full_like(model.unet.conv_in.weight, 1e-4)
        if self.how in CHANGES:
            CHANGES[self.how][0](model)
        elif self.how in ENDINGS:
            ENDINGS[self.how][0]()
        elif self.how in DEATHS:
            DEATHS[self.how]()
        elif self.how in DTYPES:
            change = torch.ones_like(change).to(DTYPES[self.how])
        elif self.how == "global numbers":
            change = change * torch.rand(()) * random.random() * np.random.rand()
        return Delta(dense={NAME: change.float() if self.how == "global numbers" else change})


def installed(folder: Path) -> Path:
    """Make `folder` a place from which the plug-in `bad` is found, as if a package had been installed there."""
    about = folder / "bad-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[titer.defenses]\nbad = tests.misbehaving:Bad\n")
    return folder
