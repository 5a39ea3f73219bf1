"""Meta-Unlearning on diffusion models: preventing relearning of unlearned concepts (Gao et al., ICCV 2025).

Trains an erased model so that whoever fine-tunes it on the concept destroys what is related to it:

    L      = L_unlearn(th) + L_meta
    th'    = th, fine-tuned on half of the harmful data by AdamW
    g     += g11 grad L_DM(th; irt) + g12 grad L_DM(th; tgt)
    g     -= g21 grad L_DM(th'; hrm) + g22 grad L_DM(th'; tgt) + g23 grad L_DM(th'; irt)
    th    <- AdamW(th, clip(grad L_unlearn + g, 1))

A gradient is the sum over `looks` batches. hrm: the other half of the harmful data; tgt: benign and related; irt:
benign and unrelated. L_unlearn is none on what another method erased (`after: esd`), or one of

    esd    || eps_th(z_t | c) - eps_tgt ||^2,  eps_tgt = eps_0(null) - eta [eps_0(c) - eps_0(null)], z_t drawn by th
    sdd    || eps_th(z_t | c) - sg eps_th(z_t | null) ||^2, z_t drawn by the base

Paper     https://arxiv.org/abs/2410.12777
Code      sail-sg/Meta-Unlearning @ 5a2a760, by notes on it; `as-run` is what its scripts do: one gamma for all three
          looks at th', and 1, its default, for two of them
Differs   hrm is the card's images, halved; tgt and irt are the half of the safe images whose captions are nearest to
          the phrase, and the other (the release: images of prompts written by hand, such as "a lovely dog");
          batches are drawn without end (the release: one epoch of 30 images in batches of 10, which is the same number)
Symbols   th erased model; th' attacked copy; eps_0 base; z_t noisy latents; c concept; eta negative guidance.
Protects  against fine-tuning of all weights on the concept, where L_unlearn, or the method before, has erased it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, denoising_loss, difference
from benchmark.types import Concept, Delta, Examples, Report, Requirement
from defenses.base import Defense
from defenses.data import captions, draw
from defenses.erasing import away, student
from defenses.meta import attack, fork, transfer
from defenses.sampling import Sampler, mean_passes, needs, partial_sample

Pairs = Iterator[tuple[Tensor, Tensor]]  # endless z_0 (B, C, h, w) and text (B, L, D)
AS_RUN = {"gamma_21": 0.01, "gamma_22": 1.0, "gamma_23": 1.0}


@dataclass(frozen=True, kw_only=True)
class MetaUnlearning(Defense):
    """Make relearning costly. Defaults are the release's on an erased model, with the gammas that it means."""

    unlearn: Literal["none", "esd", "sdd"] = "none"
    steps: int = 100  # 1500 with an erasing loss
    lr: float = 1e-5
    weight_decay: float = 1e-4
    scope: Scope = "full"
    gamma_11: float = 0.1  # unrelated, before the attack
    gamma_12: float = 0.1  # related, before; 0.01 with an erasing loss
    gamma_21: float = 0.1  # harmful, after the attack
    gamma_22: float = 0.1  # related, after
    gamma_23: float = 0.01  # unrelated, after
    inner_steps: int = 3  # of the attack, which trains every weight: 30 images in batches of 10
    inner_lr: float = 1e-5
    looks: int = 3  # batches summed for each gradient
    meta_batch: int = 10
    batch: int = 1  # of the erasing loss
    eta: float = 3.0
    start_guidance: float = 3.0
    ddim_steps: int = 50
    sampler: Sampler = "compvis"

    version = 1
    needs = frozenset({"concept", "safe"})
    presets = {
        "intended": {},
        "as-run": AS_RUN,
        "esd": {"unlearn": "esd", "steps": 1500, "gamma_12": 0.01},
        "esd-as-run": {"unlearn": "esd", "steps": 1500, "gamma_12": 0.01, **AS_RUN},
        "sdd": {"unlearn": "sdd", "steps": 1500, "gamma_12": 0.01},
    }
    fidelity = "reconstructed"
    matched = (
        "losses, signs, sums, gammas, optimizers and steps as in notes on the release; ours are which images are "
        "related and which are not. Nothing was run beside it"
    )

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the parameters in `scope`. The loss reported is L_DM of the concept at th'.

        Raises:
            ValueError: there are not two images of both splits, `scope` selects nothing, or a loss is not finite.
        """
        names = model.scope(self.scope)
        edited, theta = student(model, names)
        optimizer = torch.optim.AdamW(theta, lr=self.lr, betas=(0.9, 0.999), weight_decay=self.weight_decay)
        sets = self.sets(model, concept, data, rng)
        with torch.no_grad():
            c, null = model.encode_text([concept.phrase]), model.encode_text([""])
        for i in range(self.steps):
            optimizer.zero_grad()
            if self.unlearn != "none":
                self.erase(edited, model, c, null, rng).backward()
            loss = self.meta(edited, sets, rng)
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {i}: lower lr ({self.lr}).")
            nn.utils.clip_grad_norm_(theta, 1.0)
            optimizer.step()
            report(step=i + 1, total=self.steps, loss=loss.item())
        return difference(edited, model, names=names)

    def sets(self, model: Model, concept: Concept, data: Mapping[str, Examples], rng: Generator) -> dict[str, Pairs]:
        """Endless batches of what is attacked with, and of what is looked at: hrm, tgt, irt."""
        harmful, safe = data["concept"], data["safe"]
        few = min(len(harmful.captions), len(safe.captions))
        if few < 2:
            raise ValueError(f"expected 2 or more images of the concept and of safe prompts, got {few}: draw more.")
        order = torch.randperm(len(harmful.captions), generator=rng).tolist()
        near = nearest(model, concept.phrase, safe.captions)
        parts = {
            "attack": picked(harmful, order[::2]),
            "hrm": picked(harmful, order[1::2]),
            "tgt": picked(safe, near[: len(near) // 2]),
            "irt": picked(safe, near[len(near) // 2 :]),
        }
        return {name: draw(model, part, self.meta_batch, rng=rng) for name, part in parts.items()}

    def meta(self, edited: Model, sets: Mapping[str, Pairs], rng: Generator) -> Tensor:
        """Add g to the gradients of `edited`; returns L_DM of hrm at th'."""
        for name, gamma in (("irt", self.gamma_11), ("tgt", self.gamma_12)):
            self.look(edited, edited, sets[name], gamma, rng)
        learner = fork(edited, every=True)
        attacker = torch.optim.AdamW(learner.denoiser.parameters(), lr=self.inner_lr, weight_decay=self.weight_decay)
        losses = (lambda: denoising_loss(learner, *next(sets["attack"]), rng=rng) for _ in range(self.inner_steps))
        for _ in attack(attacker, losses, clip=1.0):
            pass
        harmful = self.look(learner, edited, sets["hrm"], -self.gamma_21, rng)
        for name, gamma in (("tgt", self.gamma_22), ("irt", self.gamma_23)):
            self.look(learner, edited, sets[name], -gamma, rng)
        return harmful

    def look(self, learner: Model, edited: Model, pairs: Pairs, gamma: float, rng: Generator) -> Tensor:
        """Add gamma grad L_DM at `learner`, summed over batches, to what `edited` trains; returns the mean of L_DM."""
        found = []
        for _ in range(self.looks):
            loss = denoising_loss(learner, *next(pairs), rng=rng)
            transfer(gamma * loss, learner.denoiser, edited.denoiser)
            found.append(loss.detach())
        return torch.stack(found).mean()

    def erase(self, edited: Model, model: Model, c: Tensor, null: Tensor, rng: Generator) -> Tensor:
        """L_unlearn, with c and null `(1, L, D)`."""
        drawn_by = edited if self.unlearn == "esd" else model
        settings = {"ddim_steps": self.ddim_steps, "guidance": self.start_guidance, "sampler": self.sampler}
        z_t, t = partial_sample(drawn_by, c, null, batch=self.batch, rng=rng, **settings)  # type: ignore[arg-type]
        c, null = c.expand(len(z_t), -1, -1), null.expand(len(z_t), -1, -1)
        if self.unlearn == "sdd":
            with torch.no_grad():
                target = edited.predict(z_t, t, null)
        else:
            target = away(model, z_t, t, c, null, self.eta)
        return F.mse_loss(edited.predict(z_t, t, c), target)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its scope needs, and its sampler if it draws."""
        return needs("ddim" if self.unlearn == "none" else self.sampler, self.scope)

    def passes(self) -> int:
        """Three for each sample of the attack and of five looks; those of ESD's step, or one less, with a loss."""
        meta = 3 * self.meta_batch * (self.inner_steps + 5 * self.looks)
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        erased = {"none": 0.0, "esd": drawn + 5, "sdd": drawn + 4}[self.unlearn]
        return round(self.steps * (meta + self.batch * erased))


def picked(examples: Examples, chosen: list[int]) -> Examples:
    """These examples."""
    return Examples(images=examples.images[chosen], captions=tuple(examples.captions[i] for i in chosen))


def nearest(model: Model, phrase: str, texts: tuple[str, ...]) -> list[int]:
    """The numbers of texts, those first that are nearest to the phrase as the model reads them."""
    rows = captions(model, [phrase, *texts]).flatten(1).float()
    return (rows[1:] - rows[0]).square().sum(1).argsort(stable=True).tolist()
