"""SPM's adapters of rank 1, trained: what its merged form and its gated one share. The equations are in `spm`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from benchmark.diffusion import Model, normal
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Report, Requirement, Split
from defenses.erasing import away, descend
from defenses.sampling import Sampler, mean_passes, needs, partial_sample
from defenses.text_rows import Wording, prompts_read, wanted

RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class Membranes:
    """Adapters of rank 1 on all layers of the blocks that attend. Defaults: the release's."""

    steps: int = 3000
    lr: float = 1e-4
    weight_decay: float = 1e-2
    batch: int = 1
    rank: int = 1
    alpha: int = 1
    eta: float = 1.0  # negative guidance
    anchoring: float = 1000.0
    anchors: Literal["release", "all"] = "release"
    surrogate: str = ""
    start_guidance: float = 3.0
    ddim_steps: int = 30
    sampler: Sampler = "ddim"
    erase: Wording = "phrase"  # one of them a step; wordings and the defender's prompts are ours

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read(self.erase, "none")

    def adapters(
        self, model: Model, concept: Concept, rng: Generator, report: Report
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The trained D `(r, in)` and (alpha / r) U `(out, r)` of each layer, by its name in a delta.

        Raises:
            ValueError: this model has no block that attends, or the loss is not finite.
        """
        edited = model.clone(only=())
        layers = add_adapters(edited, rank=self.rank, alpha=self.alpha, targets=attending(model), rng=rng)
        for layer in layers.values():  # Kaiming's uniform, a = sqrt(5)
            down = layer.lora_A["default"].weight
            down.data = ((2 * torch.rand(down.shape, generator=rng) - 1) / down[0].numel() ** 0.5).to(down)
        theta = [p for p in edited.denoiser.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(theta, lr=self.lr, weight_decay=self.weight_decay)
        schedule = LambdaLR(optimizer, self.rate)
        losses = islice(self.losses(edited, model, concept, rng), self.steps)
        descend(optimizer, losses, report, total=self.steps, after=schedule.step)
        return dict(low_rank(layers, edited.part).low_rank)

    def rate(self, step: int) -> float:
        """The share of lr at a step: up in a sixth of all, then a cosine with restarts."""
        warm = self.steps // 6
        if step < warm:
            return step / warm
        done = (step - warm) / (self.steps - warm)
        return 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * (RESTARTS * done % 1)))

    def losses(self, edited: Model, model: Model, concept: Concept, rng: Generator) -> Iterator[Tensor]:
        """Endless losses."""
        with torch.no_grad():
            texts, null = model.encode_text(wanted(concept, self.erase)), model.encode_text([""])
            surrogate = model.encode_text([self.surrogate])
        while True:
            chosen = int(torch.randint(len(texts), (), generator=rng))
            c = texts[chosen : chosen + 1]
            z_t, t = self.draw(edited, c, null, rng)
            yield self.loss(edited, model, z_t, t, c, surrogate, self.others(c, null, rng))

    def draw(self, edited: Model, c: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(B, C, h, w)` and t `()`: from noise with prompt c, stopped at a random step."""
        return partial_sample(
            edited,
            c,
            null,
            batch=self.batch,
            ddim_steps=self.ddim_steps,
            guidance=self.start_guidance,
            sampler=self.sampler,
            rng=rng,
        )

    def others(self, c: Tensor, null: Tensor, rng: Generator) -> Tensor:
        """The anchors `(4, L, D)`, for c and null `(1, L, D)`."""
        drawn = normal((2 if self.anchors == "release" else 4, *c.shape[1:]), rng, like=c)
        scale = (0.8 + 0.4 * torch.rand(len(drawn), generator=rng)).to(c)
        drawn = drawn * (scale * c.norm() / drawn.flatten(1).norm(dim=1))[:, None, None]
        return torch.cat([null, null, drawn]) if self.anchors == "release" else drawn

    def loss(
        self, edited: Model, model: Model, z_t: Tensor, t: Tensor, c: Tensor, surrogate: Tensor, others: Tensor
    ) -> Tensor:
        """For z_t `(B, C, h, w)`, t `()`, c and surrogate `(1, L, D)`, others `(n, L, D)`."""
        c, surrogate = c.expand(len(z_t), -1, -1), surrogate.expand(len(z_t), -1, -1)
        erase = F.mse_loss(edited.predict(z_t, t, c), away(model, z_t, t, c, surrogate, self.eta))
        z, a = z_t.repeat(len(others), 1, 1, 1), others.repeat_interleave(len(z_t), 0)
        with torch.no_grad():
            eps_0 = model.predict(z, t, a)
        return erase + self.anchoring * F.mse_loss(edited.predict(z, t, a), eps_0)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its sampler needs."""
        return needs(self.sampler, "")

    def passes(self) -> int:
        """A step has part of a guided trajectory, 3 predictions and 8 of anchors; of those, 1 and 4 are trained."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        return round(self.steps * self.batch * (drawn + 5 + 4 * 4))


def attending(model: Model) -> list[str]:
    """The linear maps and convolutions inside blocks that attend, by name."""
    blocks = [block for block in model.layers() if any(name.endswith("to_q") for name, _ in block.named_modules())]
    inside = {id(layer) for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    return sorted(name for name, layer in model.denoiser.named_modules() if id(layer) in inside)
