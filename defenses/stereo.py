"""STEREO: A Two-Stage Framework for Adversarially Robust Concept Erasing (Srivatsan et al., CVPR 2025).

Stage 1 takes turns: erase a text, then invert words that bring the concept back on the erased model. p_0 is the phrase.

    th_k+1  || eps_th(z_t | p_k) - T_k ||^2,  T_k = eps_k(p_k) - (gamma - 1) [eps_k(p_k) - eps_k(null)]        (STE)
    p_k+1   the word v that makes L_DM(th_k+1; images, "... v ...") small, alone

Stage 2 begins with the base again, and erases all p_j at once, away from their mean and toward an anchor prompt a:

    || eps_th(z_t | p) - T ||^2,  p one of p_j                                                                 (REO)
    T = eps_0(null) + positive [eps_0(a) - eps_0(null)] - negative mean_j [eps_0(p_j) - eps_0(null)]

Paper     https://arxiv.org/abs/2408.16807
Code      https://github.com/koushiksrivats/robust-concept-erasing @ 86f124f, whose coefficients are 1 and 3 (`code`);
          in the paper's Algorithm 1, by its figure in the repository, both are eta (`paper`)
Differs   anchor prompts are the defender's, with the concept in them, as the authors' are; captions of the inversion
          are ours. Images are not flipped. Words are vectors throughout, and no token is added. t is the time of z_t
          (the release: 19 levels above it). Samples at the model's native size. The v_k are no part of the result.
Symbols   eps_0 frozen predictor; eps_k that after round k; eps_th trained predictor; z_t sampled with the text erased.
Protects  against prompts and single learned words. Makes no claim about fine-tuning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, batches, denoising_loss, difference, normal
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Split
from defenses.base import Defense
from defenses.data import latents
from defenses.erasing import away, descend, student
from defenses.free_words import alone, mean_word, put, with_slot
from defenses.sampling import Sampler, mean_passes, needs, partial_sample
from defenses.templates import SLOT, templates

INIT = {"object": "object", "style": "art", "nsfw": "person"}


@dataclass(frozen=True, kw_only=True)
class STEREO(Defense):
    """Search for words that bring the concept back, and erase them all. Defaults: the release's."""

    rounds: int = 4
    steps: int = 200  # of each round, and of stage 2
    lr_search: float = 5e-6
    lr: float = 2e-5
    weight_decay: float = 1e-2
    batch: int = 1
    gamma: float = 2.0
    positive: float = 1.0
    negative: float = 3.0
    invert_steps: int = 3000
    invert_lr: float = 5e-3
    word: str | None = None  # where inversion starts; none: object, art or person, by the card's kind
    scope: Scope = "u"  # the release asks for one: `noxattn`, or `xattn` (x)
    start_guidance: float = 3.0
    ddim_steps: int = 50
    sampler: Sampler = "ddim"

    version = 1
    needs = frozenset({"concept"})
    presets = {"code": {}, "paper": {"negative": 1.0}}
    fidelity = "reimplemented"
    matched = "equations and settings read in the release, `paper` in a figure; nothing was run beside it"

    @property
    def reads(self) -> tuple[Split, ...]:
        """The anchor prompts."""
        return ("defender",)

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of stage 2.

        Raises:
            ValueError: `scope` selects no parameter, there is no anchor prompt or no caption with room for a word, or a
                loss is not finite.
        """
        anchors = [prompt.text for prompt in concept.of("defender")]
        if not anchors:
            raise ValueError("expected prompts of the split defender as anchors, got none: add them to the card.")
        names = model.scope(self.scope)
        texts = self.search(model, names, concept, data["concept"], rng, report)
        edited, theta = student(model, names)
        with torch.no_grad():
            found = model.encode_text(anchors)
        losses = islice(self.robust(edited, model, texts, found, rng), self.steps)
        self.descend(torch.optim.AdamW(theta, lr=self.lr, weight_decay=self.weight_decay), losses, report, self.rounds)
        return difference(edited, model, names=names)

    def search(
        self, model: Model, names: set[str], concept: Concept, examples: Examples, rng: Generator, report: Report
    ) -> Tensor:
        """Stage 1: the texts p_j `(rounds + 1, L, D)`, encoded."""
        edited, theta = student(model, names)
        with torch.no_grad():
            null, texts = model.encode_text([""]), [model.encode_text([concept.phrase])]
        mean, std = latents(model, examples.images)
        captions = with_slot(model, templates(concept, "templates"), SLOT)
        start = mean_word(model, INIT[concept.kind] if self.word is None else self.word)
        for k in range(self.rounds):
            teacher = edited.clone(only={f"{model.part}.{name}" for name in names}).frozen()
            optimizer = torch.optim.AdamW(theta, lr=self.lr_search, weight_decay=self.weight_decay)
            losses = islice(self.erasing(edited, teacher, texts[-1], null, rng), self.steps)
            self.descend(optimizer, losses, report, k)
            part = gallery(len(mean), k, self.rounds)
            v = start.clone().requires_grad_()
            optimizer = torch.optim.AdamW([v], lr=self.invert_lr, weight_decay=self.weight_decay)
            for p in theta:
                p.requires_grad_(False)
            losses = islice(self.inverting(edited, v, captions, mean[part], std[part], rng), self.invert_steps)
            self.descend(optimizer, losses, report, k, self.steps)
            for p in theta:
                p.requires_grad_(True)
            texts.append(alone(model, v))
        return torch.cat(texts)

    def descend(
        self, optimizer: torch.optim.Optimizer, losses: Iterator[Tensor], report: Report, k: int, done: int = 0
    ) -> None:
        """Steps of round k, of which `done` are done."""
        each = self.steps + self.invert_steps
        descend(optimizer, losses, report, total=self.rounds * each + self.steps, done=k * each + done)

    def erasing(self, edited: Model, teacher: Model, p: Tensor, null: Tensor, rng: Generator) -> Iterator[Tensor]:
        """Endless losses of STE, for p and null `(1, L, D)`."""
        while True:
            z_t, t = self.draw(edited, p, null, rng)
            yield self.ste(edited, teacher, z_t, t, p, null)

    def ste(self, edited: Model, teacher: Model, z_t: Tensor, t: Tensor, p: Tensor, null: Tensor) -> Tensor:
        """One loss of STE: T_k is `away`, of gamma - 2 from the empty text."""
        p, null = p.expand(len(z_t), -1, -1), null.expand(len(z_t), -1, -1)
        return F.mse_loss(edited.predict(z_t, t, p), away(teacher, z_t, t, p, null, self.gamma - 2))

    def inverting(
        self, edited: Model, v: Tensor, captions: list[tuple[Tensor, int]], mean: Tensor, std: Tensor, rng: Generator
    ) -> Iterator[Tensor]:
        """Endless losses of the inversion, for v `(D,)`, and images `(N, C, h, w)`."""
        for at in batches(len(mean), self.batch, rng=rng):
            words, place = captions[int(torch.randint(len(captions), (), generator=rng))]
            text = edited.encode_words(put(words, v, place)).expand(len(at), -1, -1)
            z_0 = mean[at] + std[at] * normal(mean[at].shape, rng, like=mean)
            yield denoising_loss(edited, z_0, text, rng=rng)

    def robust(self, edited: Model, model: Model, texts: Tensor, anchors: Tensor, rng: Generator) -> Iterator[Tensor]:
        """Endless losses of REO, for p_j and anchors `(n, L, D)`."""
        with torch.no_grad():
            null = model.encode_text([""])
        orders = [batches(len(found), 1, rng=rng) for found in (texts, anchors)]
        while True:
            p, a = (found[next(order)] for found, order in zip((texts, anchors), orders, strict=True))
            z_t, t = self.draw(edited, p, null, rng)
            yield self.reo(edited, model, z_t, t, p, a, texts, null)

    def reo(
        self, edited: Model, model: Model, z_t: Tensor, t: Tensor, p: Tensor, a: Tensor, texts: Tensor, null: Tensor
    ) -> Tensor:
        """One loss of REO, for p, a and null `(1, L, D)`, all p_j `(n, L, D)`."""
        asked = torch.cat([null, a, texts])
        with torch.no_grad():
            found = model.predict(z_t.repeat(len(asked), 1, 1, 1), t, asked.repeat_interleave(len(z_t), 0))
            eps_null, eps_a, *eps_p = found.chunk(len(asked))
            T = eps_null + self.positive * (eps_a - eps_null)
            T = T - self.negative * (torch.stack(eps_p).mean(0) - eps_null)
        return F.mse_loss(edited.predict(z_t, t, p.expand(len(z_t), -1, -1)), T)

    def draw(self, edited: Model, p: Tensor, null: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """z_t `(B, C, h, w)` and t `()`: from noise with prompt p, stopped at a random step."""
        how = {"batch": self.batch, "ddim_steps": self.ddim_steps, "guidance": self.start_guidance}
        return partial_sample(edited, p, null, sampler=self.sampler, rng=rng, **how)  # type: ignore[arg-type]

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words to learn, and what its sampler and its scope need."""
        return ("words", *needs(self.sampler, self.scope))

    def passes(self) -> int:
        """A step draws part of a guided trajectory and trains one prediction; T_k has two, and T one for each text."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance) + 3
        first = self.rounds * (self.steps * (drawn + 2) + 3 * self.invert_steps)
        return round(self.batch * (first + self.steps * (drawn + 2 + self.rounds + 1)))


def gallery(n: int, k: int, rounds: int) -> Tensor:
    """Which of n images round k sees: parts without a common image, if there are as many as rounds."""
    parts = min(n, rounds)
    return torch.arange(n)[k % parts :: parts]
