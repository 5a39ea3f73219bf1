"""Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models (Huang et al., ECCV 2024).

An eraser behind each attention to the text learns ESD's target, against free vectors that bring the concept back, and
is to stay silent where the image does not attend to the concept. Linear erasers, without their GELU, are merged:

    o'    = o + U (D o + d) + u,   o what an attention answers:   W' = (I + U D) W,  b' = (I + U D) b + U d + u
    A    <- Adam(grad_A || eps_th(z_t | c; A) - eps_0(z_t | c) ||^2),  `attack_steps` times
    loss  = || eps_th(z_t | c; A) - eps_tgt ||^2 + reg mean_l [ sum (1 - M_l) mean_ch(E_l^2) / sum (1 - M_l) ]
    M     = [attention to the words of c, from its least (0) to its most (1)] >= `mask_threshold`

A takes the encoded rows behind the words of c. E_l is what eraser l adds, on the pass before the last step of A.

Paper     https://arxiv.org/abs/2311.17717
Code      https://github.com/jasper0314-huang/Receler @ 3ccedc9
Differs   linear erasers, for a change of weights has no GELU. The release writes A into a copy, which never reaches
          the U-Net (`release`); here it does. M is of the layers with a quarter of the latent's side, or the largest
          below; of a map without contrast, which is no number in the release, M is 1. Where text and image attend
          together, as on flow models, there is no such map: set `reg: 0`. A keeps out of the last row.
Symbols   eps_0 frozen predictor; eps_th with erasers; c concept; A free vectors; U, D, u, d an eraser of `rank`.
Protects  against prompts that name c, and searched ones. Makes no claim about fine-tuning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report, Requirement
from defenses.base import Defense
from defenses.erasers import Eraser, added
from defenses.erasing import descend
from defenses.sampling import Sampler, mean_passes, needs, partial_sample

OUT = "to_out.0"


@dataclass(frozen=True, kw_only=True)
class Receler(Defense):
    """Erase a phrase behind the attention to it. Defaults: the paper's, with linear erasers."""

    steps: int = 500
    lr: float = 3e-4
    batch: int = 1
    rank: int = 128
    eta: float = 1.0  # negative guidance
    vectors: int = 16
    attack_steps: int = 50
    attack_lr: float = 0.1
    attack_decay: float = 0.1
    insert: bool = True  # False: A is not read, and not searched for
    mask_threshold: float = 0.1
    reg: float = 0.1
    start_guidance: float = 3.0
    ddim_steps: int = 50
    sampler: Sampler = "compvis"  # few steps need `ddim`

    version = 1
    presets = {"paper": {}, "release": {"insert": False}}
    fidelity = "reconstructed"
    matched = "equations and settings read in the release; its erasers have a GELU. Nothing was run beside it"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the erasers, folded into the layers they stand behind.

        Raises:
            ValueError: this model has no attention to the text alone and `reg` is not 0, or the loss is not finite.
        """
        edited = model.clone(only=())
        layers = {n: cast("nn.Linear", edited.denoiser.get_submodule(n)) for n in outputs(model)}
        erasers = {n: Eraser.drawn(layer.out_features, self.rank, rng, layer.weight) for n, layer in layers.items()}
        optimizer = torch.optim.Adam([p for one in erasers.values() for p in one.parameters], lr=self.lr)
        with added(layers, erasers) as said:
            descend(optimizer, self.losses(edited, model, concept.phrase, said, rng), report, total=self.steps)
        dense = dict[str, Tensor]()
        for n, one in erasers.items():
            for kind, change in zip(("weight", "bias"), one.folded(layers[n]), strict=True):
                dense[f"{model.part}.{n}.{kind}"] = change.cpu().contiguous()
        return Delta(dense=dense)

    def losses(self, edited: Model, model: Model, phrase: str, said: list[Tensor], rng: Generator) -> Iterator[Tensor]:
        """The losses of all steps; `said` has what the erasers added on the last pass."""
        rows = model.rows_of(phrase)
        with torch.no_grad():
            c, null = model.encode_text([phrase]), model.encode_text([""])
        first = rows[-1] + 1
        count = min(self.vectors, c.shape[1] - 1 - first)
        A = torch.rand((1, count, c.shape[2]), generator=rng).to(c).requires_grad_()
        adversary = torch.optim.Adam([A], lr=self.attack_lr, weight_decay=self.attack_decay)
        how = {"ddim_steps": self.ddim_steps, "guidance": self.start_guidance, "sampler": self.sampler}
        for _ in range(self.steps):
            z_t, t = partial_sample(edited, c, null, batch=self.batch, rng=rng, **how)  # type: ignore[arg-type]
            text, empty = c.expand(len(z_t), -1, -1), null.expand(len(z_t), -1, -1)
            M, eps_c = self.mask(model, z_t, t, text, rows)
            with torch.no_grad():
                eps_null = model.predict(z_t, t, empty)
            for j in range(self.attack_steps if self.insert else 1):
                said.clear()
                if self.insert:
                    text = torch.cat([c[:, :first], A, c[:, first + count :]], dim=1).expand(len(z_t), -1, -1)
                eps = edited.predict(z_t, t, text)
                if self.insert:
                    last = j == self.attack_steps - 1
                    (A.grad,) = torch.autograd.grad(F.mse_loss(eps, eps_c), A, retain_graph=last)
                    adversary.step()
            loss = F.mse_loss(eps, eps_null - self.eta * (eps_c - eps_null))
            yield loss + (self.reg * silence(said, M, model.latent_shape) if M is not None else 0.0)

    def mask(self, model: Model, z_t: Tensor, t: Tensor, c: Tensor, rows: list[int]) -> tuple[Tensor | None, Tensor]:
        """M `(B, N)`, true at the concept, if it is asked for, and eps_0(z_t | c)."""
        with torch.no_grad():
            if not self.reg:
                return None, model.predict(z_t, t, c)
            with model.attending() as maps:
                eps_c = model.predict(z_t, t, c)
            return masked(maps, rows, z_t[0, 0].numel() // 16, self.mask_threshold), eps_c

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its sampler needs, and for M an attention to the text alone."""
        return (*needs(self.sampler, ""), "apart") if self.reg else needs(self.sampler, "")

    def passes(self) -> int:
        """A step draws part of a guided trajectory, asks twice, and trains A and once more through the last pass."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        trained = 3 * self.attack_steps + 2 if self.insert else 3
        return round(self.steps * self.batch * (drawn + 2 + trained))


def masked(maps: list[Tensor], rows: list[int], wanted: int, threshold: float) -> Tensor:
    """M `(B, N)` of maps `(B, heads, N, L)`: those with `wanted` places, or the most below, or the fewest above."""
    sizes = {a.shape[2] for a in maps}
    size = max((n for n in sizes if n <= wanted), default=min(sizes))
    found = torch.stack([a[..., rows].mean((1, 3)) for a in maps if a.shape[2] == size]).mean(0)
    low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
    return (found - low >= threshold * (high - low)) | (high == low)


def silence(said: list[Tensor], M: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """How much erasers said `(B, N_l, dim)` outside M `(B, N)`, for latents of `shape` `(C, h, w)`."""
    found = []
    for E in said:
        outside = 1 - resized(M.float(), E.shape[1], shape)
        found.append(((outside * E.square().mean(-1)).sum(1) / (outside.sum(1) + 1e-9)).mean())
    return torch.stack(found).mean()


def resized(M: Tensor, n: int, shape: tuple[int, int, int]) -> Tensor:
    """M `(B, N)` at another size `(B, n)`, nearest."""
    ratio = shape[1] / shape[2]
    (h, w), size = [(round((k * ratio) ** 0.5), round((k / ratio) ** 0.5)) for k in (M.shape[1], n)]
    return F.interpolate(M.reshape(-1, 1, h, w), size=size, mode="nearest").flatten(1)


def outputs(model: Model) -> list[str]:
    """The last layers of the attentions to the text, by name."""
    ending = f".{OUT}.weight"
    return sorted(name.removesuffix(".weight") for name in model.scope("x") if name.endswith(ending))
