"""What a method has seen along a frozen model: noisy latents, and what is predicted of them; drawn anew, or pooled.

While the denoiser that draws is not trained, all of it stays true: a pool of draws serves as many steps as one likes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model
from defenses.sampling import partial_sample


@dataclass(frozen=True)
class Seen:
    """z_t `(B, C, h, w)`, t `()`, which text it was drawn with, what eps_0 says with it, and without a text."""

    z: Tensor
    t: Tensor
    which: Tensor
    eps: Tensor
    eps_null: Tensor | None


def look(by: Model, model: Model, c: Tensor, null: Tensor, at: Tensor, whole: bool, **how: Any) -> Seen:
    """Draw with the texts at `at` of c `(n, L, D)`, and ask the frozen model; `whole`: without a text, too.

    `by` draws; how, says `partial_sample`.
    """
    text = c[at]
    z, t = partial_sample(by, text, null, batch=len(text), **how)
    with torch.no_grad():
        eps_null = model.predict(z, t, null.expand_as(text)) if whole else None
        return Seen(z, t, at, model.predict(z, t, text), eps_null)


class Draws:
    """What is seen of one of several texts: anew each time, or, if some are pooled, one of those drawn in turns."""

    def __init__(self, see: Callable[[int, bool], Seen], texts: int, pool: int, *, whole: bool) -> None:
        self.see, self.texts = see, texts
        self.pool = [see(i % texts, whole) for i in range(pool)]

    def __call__(self, chosen: int, whole: bool, rng: Generator) -> Seen:
        """One draw with text `chosen`; `whole`: with what eps_0 says without a text."""
        mine = self.pool[chosen :: self.texts]
        return mine[int(torch.randint(len(mine), (), generator=rng))] if mine else self.see(chosen, whole)
