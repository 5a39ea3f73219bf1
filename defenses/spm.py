"""SPM: One-dimensional Adapter to Rule Them All (Lyu et al., CVPR 2024).

Adapters of rank 1 on all layers of the blocks that attend learn ESD's target, and to change nothing else:

    W     <- W + (alpha / r) U D
    loss  = || eps_S(z_t|c) - eps_tgt ||^2 + lambda 1/n sum_i || eps_S(z_t|a_i) - eps_0(z_t|a_i) ||^2

    eps_tgt = eps_0(z_t|s) - eta [eps_0(z_t|c) - eps_0(z_t|s)],  s a surrogate, by default the empty text
    a_i     = N(0, I) of the encoding's shape, scaled to U(0.8, 1.2) times the norm of c

z_t is sampled with the adapters on, prompt c and guidance `start_guidance`. The release has the adapters in a file, and
lets each prompt's likeness to c say how strong they are; what is defended here is the model in which they are merged.

Paper     https://arxiv.org/abs/2312.16145
Code      https://github.com/Con6924/SPM @ 3dd762e
Differs   merged and always on, as `strength` U D: the release's gate multiplies both factors, so that its multiplier 2
          for nudity is a strength of 4. Samples at the model's native size, by the family's own sampler (the release:
          256 to 448 pixels, a DDIM of 30 steps whose t is 33 to 42 levels above that of z_t). Of its four anchors two
          are the empty text, by how pairs are put together (`release`); `all`: four drawn ones. It takes a drawn anchor
          with probability 1 - cos(a, c), which is 1 in so many dimensions: here always. AdamW is not of 8 bit. The
          warm-up is a sixth of the steps: 500 of 3000.
Symbols   eps_0 frozen predictor; eps_S with adapters; c concept; a_i anchors; eta negative guidance; lambda weight.
Protects  against prompts that name c. Makes no claim about fine-tuning.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from benchmark.diffusion import Model, normal
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split
from defenses.base import Defense
from defenses.erasing import away, descend
from defenses.sampling import Sampler, mean_passes, needs, partial_sample
from defenses.text_rows import Wording, prompts_read, wanted

RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class SPM(Defense):
    """Erase a phrase with adapters of rank 1. Defaults: the release's."""

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
    strength: float = 1.0
    start_guidance: float = 3.0
    ddim_steps: int = 30
    sampler: Sampler = "ddim"
    erase: Wording = "phrase"  # one of them a step; wordings and the defender's prompts are ours

    version = 1
    several = True
    presets = {"release": {}, "nudity": {"strength": 4.0}, "all-anchors": {"anchors": "all"}}
    fidelity = "reimplemented"
    matched = "equations and settings read in the release; nothing was run beside it. Its gate is left out"

    @property
    def reads(self) -> tuple[Split, ...]:
        """Of whose prompts it reads the texts."""
        return prompts_read(self.erase, "none")

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the adapters, `strength` folded in.

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
        found = low_rank(layers, edited.part).low_rank
        return Delta(low_rank={name: (down, self.strength * up) for name, (down, up) in found.items()})

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
