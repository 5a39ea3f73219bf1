"""AdvUnlearn: Defensive Unlearning with Adversarial Training for Robust Concept Erasure (Zhang et al., NeurIPS 2024).

Erases ESD's way, against a word that brings the concept back, and keeps what other prompts are answered:

    x*    = argmin_x || eps_th(z_t | x) - eps_0(z_t | c) ||^2,   x = one free word before those of c
    loss  = || eps_th(z_t | x*) - eps_tgt ||^2 + w || eps_th(z_r | r) - eps_0(z_r | r) ||^2         (`reg`)

or both terms in steps of their own, the second without w (`iter`). th are the layers of the text encoder, or of the
denoiser. In the first `warm_up` of the steps x* is c. eps_tgt is ESD's, see `defenses.erasing`.

Paper     https://arxiv.org/abs/2405.15234
Code      https://github.com/OPTML-Group/AdvUnlearn @ 9d23124
Differs   r are the card's prompts of the split `prior` (the release: "a photo of" 243 objects of COCO). While the text
          encoder is trained, z_t, z_r and what eps_0 says of them do not depend on th: they are drawn once, `pool` and
          `retain_pool` times, and chosen from (the release draws anew each time, at 1.65 M passes; `pool: 0` does). All
          tokens of c stay (the release counts words, and drops what is more). z_r has a length and t of its own, and r
          is drawn with replacement between steps. A model with several text encoders has all of them trained.
Symbols   eps_0 frozen predictor with its text encoder; eps_th trained ones; c concept; r retained prompt; w weight.
Protects  against prompts found by search. Makes no claim about fine-tuning. The public text encoder undoes `part:
          text_encoder` at once.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, batches, difference
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split
from defenses.base import Defense
from defenses.base import Part as Removable
from defenses.draws import Draws, Seen, look
from defenses.erasing import descend
from defenses.free_words import insert, table_word, with_room
from defenses.sampling import Sampler, mean_passes, needs
from defenses.text_rows import Wording, wanted

TRAINED = re.compile(r"(^|\.)(encoder|final_layer_norm)\.")  # of a text encoder: neither its tables nor a projection


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Defense):
    """Erase a phrase against a searched word. Defaults: the release's for the text encoder."""

    part: Literal["text_encoder", "denoiser"] = "text_encoder"
    steps: int = 1000
    warm_up: float = 0.2  # of the steps
    lr: float = 1e-5
    batch: int = 1
    eta: float = 1.0  # negative guidance
    attack_steps: int = 30
    attack_lr: float = 1e-3
    attack: Literal["pgd", "fast_at"] = "pgd"  # fast_at: by the gradient's sign
    attack_init: Literal["random", "latest"] = "random"
    accumulate: bool = True  # gradients of the search are never set to zero, as in the release
    retain: Literal["reg", "iter"] = "reg"
    retain_weight: float = 0.3
    retain_batch: int = 5
    pool: int = 512
    retain_pool: int = 128
    scope: Scope = "u-old"  # of the denoiser
    start_guidance: float = 3.0
    ddim_steps: int = 50
    sampler: Sampler = "compvis"  # few steps need `ddim`
    erase: Wording = "phrase"  # one of them a step; wordings and the defender's prompts are ours

    version = 1
    several = True
    presets = {"text-encoder": {}, "unet": {"part": "denoiser"}, "fast": {"attack": "fast_at", "attack_steps": 1}}
    fidelity = "reimplemented"
    matched = "equations and settings read in the release; nothing was run beside it"

    @property
    def removable(self) -> Removable | None:
        """The text encoder, if it is what was trained."""
        return "text_encoder" if self.part == "text_encoder" else None

    @property
    def reads(self) -> tuple[Split, ...]:
        """What is kept, and of whose prompts it erases the texts."""
        return ("defender", "prior") if self.erase == "defender" else ("prior",)

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the text encoders, or of the parameters in `scope`.

        Raises:
            ValueError: the card has no prompts of the split `prior`, a text has no room for a word, or the loss is not
                finite.
        """
        kept = [prompt.text for prompt in concept.of("prior")]
        if not kept:
            raise ValueError("expected prompts of the split prior, to keep them, got none: add them to the card.")
        names = self.names(model)
        edited = model.clone(only={f"{part}.{name}" for part, found in names.items() for name in found})
        theta = []
        for part, found in names.items():
            theta += [p.requires_grad_(True) for n, p in edited.parts[part].named_parameters() if n in found]
        optimizer = torch.optim.Adam(theta, lr=self.lr)
        losses, total = self.losses(edited, model, concept, kept, rng), self.steps * (1 + (self.retain == "iter"))
        descend(optimizer, losses, report, total=total)
        changes = [difference(edited, model, part=part, names=found) for part, found in names.items()]
        return Delta(dense={name: tensor for change in changes for name, tensor in change.dense.items()})

    def names(self, model: Model) -> dict[str, set[str]]:
        """The parameters that are trained, by part."""
        if self.part == "denoiser":
            return {model.part: model.scope(self.scope)}
        encoders = [name for _, name in model.readers]
        return {e: {n for n, _ in model.parts[e].named_parameters() if TRAINED.search(n)} for e in encoders}

    def losses(
        self, edited: Model, model: Model, concept: Concept, kept: list[str], rng: Generator
    ) -> Iterator[Tensor]:
        """The losses of all steps.

        Raises:
            ValueError: fewer draws are pooled than texts are erased.
        """
        texts, pooled = wanted(concept, self.erase), self.part == "text_encoder"
        if pooled and 0 < self.pool < len(texts):
            raise ValueError(f"expected a pool of at least {len(texts)}, one for each text, got {self.pool}: raise it.")
        with torch.no_grad():
            words, c = with_room(model, texts, 1), model.encode_text(texts)
            r, null = torch.cat([model.encode_text([text]) for text in kept]), model.encode_text([""])
        order, how = batches(len(kept), self.retain_batch, rng=rng), {"ddim_steps": self.ddim_steps, "rng": rng}
        how |= {"guidance": self.start_guidance, "sampler": self.sampler}

        def of_c(i: int, whole: bool) -> Seen:
            return look(edited, model, c, null, torch.full((self.batch,), i), whole, **how)

        def of_r(_: int, whole: bool) -> Seen:
            return look(edited, model, r, null, next(order), whole, **how)

        z_c = Draws(of_c, len(texts), self.pool * pooled, whole=True)
        z_r = Draws(of_r, 1, self.retain_pool * pooled, whole=False)
        free = table_word(model, rng)
        for i in range(self.steps):
            chosen = int(torch.randint(len(texts), (), generator=rng))
            x = words[chosen : chosen + 1]
            if i >= round(self.warm_up * self.steps):
                free = table_word(model, rng) if self.attack_init == "random" else free
                free, x = self.search(edited, partial(z_c, chosen, False, rng), x, free)
            loss = self.erase_loss(edited, z_c(chosen, True, rng), edited.encode_words(x))
            if self.retain == "iter":
                yield loss
                yield self.keep_loss(edited, z_r(0, False, rng), kept)
            else:
                yield loss + self.retain_weight * self.keep_loss(edited, z_r(0, False, rng), kept)

    def search(self, edited: Model, draw: Callable[[], Seen], words: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """The free vector `(1, 1, D)` after all steps, and the words of x* `(1, L, D)` before the last of them."""
        v, x = free.detach().clone().requires_grad_(), insert(words, free)
        optimizer = torch.optim.Adam([v], lr=self.attack_lr)
        G = torch.zeros_like(v)
        for _ in range(self.attack_steps):
            seen, x = draw(), insert(words, v)
            predicted = edited.predict(seen.z, seen.t, edited.encode_words(x).expand(len(seen.z), -1, -1))
            (gradient,) = torch.autograd.grad(F.mse_loss(predicted, seen.eps), v)
            G = G + gradient if self.accumulate else gradient
            G = G.sign() if self.attack == "fast_at" else G
            v.grad = G.clone()
            optimizer.step()
        return v.detach(), x.detach()

    def erase_loss(self, edited: Model, seen: Seen, text: Tensor) -> Tensor:
        """The first term, at x* encoded by th, `(1, L, D)`."""
        assert seen.eps_null is not None
        eps_tgt = seen.eps_null - self.eta * (seen.eps - seen.eps_null)
        return F.mse_loss(edited.predict(seen.z, seen.t, text.expand(len(seen.z), -1, -1)), eps_tgt)

    def keep_loss(self, edited: Model, seen: Seen, kept: list[str]) -> Tensor:
        """The second term, without w, on the prompts it was drawn with."""
        text = edited.encode_text([kept[int(i)] for i in seen.which])
        return F.mse_loss(edited.predict(seen.z, seen.t, text), seen.eps)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words to search, an encoder to change, and what its sampler and its scope need."""
        encoder = self.part == "text_encoder"
        return ("words", *(("readers",) if encoder else ()), *needs(self.sampler, "" if encoder else self.scope))

    def passes(self) -> int:
        """Each draw is part of a guided trajectory and one or two predictions; all else trains one prediction."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        searched = (self.steps - round(self.warm_up * self.steps)) * self.attack_steps
        pooled = self.part == "text_encoder"
        erased = (
            (self.pool * (drawn + 2)) if pooled and self.pool else self.steps * (drawn + 2) + searched * (drawn + 1)
        )
        kept = (self.retain_pool if pooled and self.retain_pool else self.steps) * (drawn + 1)
        return round(self.batch * (erased + 3 * (self.steps + searched)) + self.retain_batch * (kept + 3 * self.steps))
