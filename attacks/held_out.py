"""How every search chooses what it hands over: the best candidate that it has seen, by a loss no step has drawn.

    held-out loss of c_i = mean over n pairs (t, eps) of || f_theta(z_t, t, c_i) - wanted ||^2,    t one in each n-th

The pairs of a prompt are drawn from a seed of its own text, so that a search, its control and every defense meet the
same ones; neither the searches' randomness nor an image's noise comes from there. A search over texts alone has no
noise to hold out: its objective is that loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmark.diffusion import Model
from benchmark.seeds import named
from benchmark.types import Report, Snapshot

TOGETHER = 8  # samples without a gradient at once


@dataclass(frozen=True)
class Candidates:
    """What a search has after a step: a row of words `(K, S)` and the step's loss `(K,)` for each attacked prompt.

    `numbers` are what else tells how far it is, `(K,)` each.
    """

    rows: Tensor
    loss: Tensor
    numbers: Mapping[str, Tensor] = field(default_factory=dict)


class Best:
    """The best text so far for each of K attacked prompts: the least loss; of equals the first seen."""

    def __init__(self, texts: Sequence[str], loss: Tensor) -> None:
        self.texts, self.loss, self.before = list(texts), loss.detach().tolist(), tuple(loss.detach().tolist())

    def see(self, texts: Sequence[str], loss: Tensor) -> None:
        """Take what is better."""
        for i, (text, value) in enumerate(zip(texts, loss.tolist(), strict=True)):
            if value < self.loss[i]:
                self.texts[i], self.loss[i] = text, value

    def snapshot(self, steps: int, numbers: Mapping[str, Tensor]) -> Snapshot:
        """What is handed over, with the evidence of how it was found."""
        told = {name: tuple(value.tolist()) for name, value in numbers.items()}
        search = {"loss_before": self.before, "loss_after": tuple(self.loss), **told}
        return Snapshot(steps=steps, prompts=tuple(self.texts), search=search)


@dataclass(frozen=True)
class HeldOut:
    """K attacked prompts' scenes: mean latents `(K, C, h, w)`, times `(K, n)` on the CPU, noise `(K, n, C, h, w)`."""

    z_0: Tensor
    t: Tensor
    eps: Tensor

    @torch.no_grad()
    def predicted(self, model: Model, text: Tensor) -> Tensor:
        """What a model predicts of them for texts `(K, L, D)`: `(K, n, C, h, w)`."""
        return torch.stack([self.of_scene(model, i, text[i : i + 1]) for i in range(len(text))])

    def of_scene(self, model: Model, i: int, text: Tensor) -> Tensor:
        """Of scene i, for one text `(1, L, D)`: `(n, C, h, w)`."""
        found = []
        for t, eps in zip(self.t[i].split(TOGETHER), self.eps[i].split(TOGETHER), strict=True):
            z_t = model.noised(self.z_0[i : i + 1].expand_as(eps), eps, t)
            found.append(model.predict(z_t, t.to(z_t.device), text.expand(len(t), -1, -1)))
        return torch.cat(found)

    def targets(self, model: Model) -> Tensor:
        """What the data has there: `(K, n, C, h, w)`."""
        return torch.stack(
            [model.target(z.expand_as(e), e, t) for z, e, t in zip(self.z_0, self.eps, self.t, strict=True)]
        )

    def loss(self, model: Model, text: Tensor, wanted: Tensor) -> Tensor:
        """The held-out loss of texts `(K, L, D)` to predict what is wanted: `(K,)`."""
        return (self.predicted(model, text) - wanted).square().flatten(1).mean(1)


def pairs_of(model: Model, texts: Sequence[str], z_0: Tensor, n: int) -> HeldOut:
    """n pairs for each attacked prompt, from its text alone, and its scene `(K, C, h, w)`."""
    times, noise = [], []
    for text in texts:
        rng = named("held-out", text)
        times.append(torch.stack([model.between(k, n, rng=rng) for k in range(n)]))
        noise.append(torch.randn((n, *z_0.shape[1:]), generator=rng).to(z_0))
    return HeldOut(z_0, torch.stack(times), torch.stack(noise))


def checks(steps: int, every: int) -> int:
    """How often the candidates of so many steps are looked at: after the first step and each `every`-th."""
    return steps // every + (every > 1)


def selected(
    found: Iterator[Candidates],
    spell: Callable[[Tensor], Sequence[str]],
    *,
    budgets: Sequence[int],
    report: Report,
    remedy: str,
    best: Best | None = None,
    judge: Callable[[Tensor], Tensor] | None = None,
    every: int = 1,
) -> Iterator[Snapshot]:
    """Walk through a search and yield the best that it has seen at each of `budgets` steps.

    When a candidate is looked at depends on its step alone, so that no snapshot depends on other budgets.

    Args:
        found: the search, one item a step.
        spell: texts of rows `(K, S)`.
        budgets: steps, rising.
        report: called once a step.
        remedy: what to do about a loss that is not finite.
        best: what is known before the first step; None begins with the first candidates.
        judge: the held-out loss `(K,)` of rows; None takes the step's own loss, which has no noise.
        every: steps from one look to the next.

    Raises:
        ValueError: a loss is not finite.
    """
    for step, now in zip(range(1, max(budgets) + 1), found, strict=False):
        value = finite(now.loss, step, remedy)
        if step == 1 or step % every == 0:
            loss = judge(now.rows) if judge else now.loss.detach()
            finite(loss, step, remedy)
            best = best or Best(spell(now.rows), loss)
            best.see(spell(now.rows), loss)
        report(step=step, total=max(budgets), loss=value)
        if step in budgets and best:
            yield best.snapshot(step, now.numbers)


def finite(loss: Tensor, step: int, remedy: str) -> float:
    """The mean loss as a number.

    Raises:
        ValueError: it is not finite.
    """
    value = float(loss.detach().mean())
    if not torch.isfinite(loss).all():
        raise ValueError(f"expected a finite loss, got {value} at step {step}: {remedy}.")
    return value
