"""The training loop of the recipe: warm-up and cosine decay, averaged weights, a CSV of losses, checkpoints."""

import csv
import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[int], dict[str, Tensor]]


def train(
    model: nn.Module, step: Step, *, steps: int, lr: float, log: Path, decay: float = 0.999, weight_decay: float = 1e-3
) -> Any:
    """Minimise `step(i)["loss"]`; return the exponentially averaged model. Resumes from its checkpoint.

    A resumed run continues from the weights, optimizer and step of the last checkpoint, so `step(i)` must draw
    what it needs from `i` alone.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    averaged = deepcopy(model).requires_grad_(False)
    checkpoint, first = log.with_suffix(".pt"), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started, log_is_new = time.monotonic(), not log.exists() or first == 0
    with log.open("w" if log_is_new else "a", newline="") as handle:
        rows = csv.writer(handle)
        for i in range(first, steps):
            warm = min(1.0, (i + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = lr * warm * (0.5 + 0.5 * math.cos(math.pi * i / steps))
            losses = step(i)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average(averaged, model, min(decay, (1 + i) / (10 + i)))
            if i % 50 == 0 or i == steps - 1:
                values = {name: float(value.detach()) for name, value in losses.items()}
                if log_is_new and i == first:
                    rows.writerow(["step", "seconds", *values])
                rows.writerow([i, round(time.monotonic() - started, 1), *(f"{v:.5f}" for v in values.values())])
                handle.flush()
            if (i + 1) % 500 == 0 and i + 1 < steps:
                save(checkpoint, model, averaged, optimizer, i + 1)
    checkpoint.unlink(missing_ok=True)
    return averaged.eval()


def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """averaged <- decay * averaged + (1 - decay) * model, buffers copied."""
    with torch.no_grad():
        torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        for mine, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


def save(path: Path, model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint whole or not at all."""
    state = {
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
