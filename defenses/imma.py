"""IMMA: Immunizing text-to-image Models against Malicious Adaptation (Zheng & Yeh, ECCV 2024).

Trains the attention projections theta to be a bad start for an adaptation phi, which is simulated along the way:

    max_theta L_A(x_M; theta, phi*)   s.t.   phi* = argmin_phi L_A(x_M; theta, phi)     (Eq. bi-level)
    L_A = L_DM = E || eps_{theta, phi}(z_t, t, c) - eps ||^2

Solved to first order by turns: `inner` steps  phi <- phi - lr_phi grad_phi L_A,  then `outer` steps
theta <- theta + lr_theta grad_theta L_A. phi keeps its state, and is thrown away at the end.

MIMA (Zheng & Yeh, AAAI 2025) adds retention, `prior`, and a phi whose keys and values are merged (`defenses.merge`):

    inner   phi   goes down  L_A + prior L_DM(safe)             outer   theta goes down  -L_A + prior L_DM(safe)

Paper     https://arxiv.org/abs/2311.18815
Code      https://github.com/amberyzheng/IMMA @ 2f55041, train/defend_*.py and scripts/run_*.sh; MIMA by notes on its
          release @ 7372e89 (several concepts are one here)
Differs   turns are counted over all steps, as for dreambooth in the release (for LoRA and textual inversion it counts
          within an epoch); no crops or flips; dreambooth trains on the images' captions (the release: one prompt with a
          rare word); textual inversion trains on the new word alone, without the release's sentence templates, starts
          it from the mean of the phrase's word vectors (the release: from one word given by hand), and clips gradients
          as the others do. `dreambooth-lora` has the rates of run_db_lora.sh; what phi is there is not known, since the
          release no longer has its `VAMMAAttnProcessor`: here a LoRA of rank 4. Defender and attacker have the same one
          caption in the release, and other wordings here, which makes immunisation weaker than in its paper.
Symbols   theta immunised weights; phi adaptation's parameters; x_M malicious images; z_t noisy latents; c text.
Protects  against fine-tuning on the concept, by the adaptation simulated.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from benchmark.diffusion import Model, denoising_loss
from benchmark.model.adapters import add_adapters
from benchmark.types import Concept, Delta, Examples, Report, Requirement
from defenses.base import Badge, Defense, Need
from defenses.data import draw
from defenses.merge import Merger
from defenses.meta import step

Adaptation = Literal["lora", "dreambooth", "textual_inversion"]
Rewrite = Callable[[Tensor], Tensor]  # the text of a batch, as the adaptation would have it

RATES: Mapping[Adaptation, tuple[float, float]] = {  # lr of phi and of theta, from the release's scripts
    "lora": (1e-4, 1e-5),
    "dreambooth": (5e-6, 2e-5),
    "textual_inversion": (5e-4, 1e-6),
}
MIMA = {"adaptation": "dreambooth", "adapt_lr": 1e-5, "prior": 1.0, "theta": "x", "merge": True}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # theta, and where the simulated LoRA goes


@dataclass(frozen=True, kw_only=True)
class IMMA(Defense):
    """Immunise the attention against one adaptation. Defaults are the release's for re-learning by LoRA."""

    adaptation: Adaptation = "lora"  # dreambooth: phi is the whole U-Net, and shares its storage with theta
    steps: int = 1000  # of phi and theta together, as in all of the release's scripts
    inner: int = 1  # steps of phi in a turn
    outer: int = 1  # steps of theta in a turn
    lr: float | None = None  # of theta; None: the release's rate for this adaptation, `RATES`
    adapt_lr: float | None = None  # of phi; None: likewise
    rank: int = 4  # of the simulated LoRA
    batch: int = 1
    weight_decay: float = 1e-2
    ascent_only: bool = False  # the release's `--max`: phi never moves
    prior: float = 0.0  # MIMA's retention: weight of the safe images' loss at both levels
    theta: Literal["attn", "x"] = "attn"  # x: what reads the text alone, as in MIMA
    merge: bool = False  # MIMA's inner step on keys and values, of `dreambooth`

    version = 1
    needs = frozenset({"concept"})
    presets = {
        "dreambooth": {"adaptation": "dreambooth"},  # scripts/run_db.sh
        "textual-inversion": {"adaptation": "textual_inversion"},  # scripts/run_ti.sh
        "dreambooth-lora": {"adaptation": "lora", "lr": 2e-5, "adapt_lr": 5e-6},  # scripts/run_db_lora.sh
        "mima": {**MIMA, "lr": 3e-5},  # re-learning; its inner rate is doubled where there is a prior
        "mima-personalize": {**MIMA, "lr": 2e-5},
    }
    later = frozenset({"prior", "theta", "merge"})
    fidelity = "official-matched"
    matched = (
        "run beside the release on a random model: fed with the latents, noise, timesteps and text of each step, eight "
        "steps of `lora`, `dreambooth` and `textual_inversion` (without its templates) give the same theta to the last "
        "bit, with its `--max` and with two inner steps as well; theta is its 160 tensors on SD 1.4, by name, and the "
        "rates are printed from its optimizers. Not compared: `dreambooth-lora`. No trained weights, no GPU"
    )

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the attention projections that makes `adaptation` fail on the concept's images.

        Raises:
            ValueError: the U-Net has no attention projections, the loss is not finite, or only `dreambooth` can merge.
        """
        if self.merge and self.adaptation != "dreambooth":
            raise ValueError(f"expected adaptation dreambooth to merge, got {self.adaptation!r}: set it.")
        theta_of = {f"{model.part}.{name}" for name in projections(model, self.theta)}
        immunised = model.clone(only={model.part} if self.adaptation == "dreambooth" else theta_of)
        theta = projections(immunised, self.theta)  # taken first: an adapter would change the names
        phi, rewrite = self.adapt(immunised, concept, rng)
        merger = Merger(model, immunised, concept, data["safe"].captions) if self.merge else None
        for parameter in (*theta.values(), *phi):
            parameter.requires_grad_(True)
        rates = self.rates()
        phi = merger.others(phi) if merger else phi
        adapt, immunise = self.optimizer(phi, rates["adapt_lr"]), self.optimizer(theta.values(), rates["lr"])
        draws = draw(model, data["concept"], self.batch, rng=rng)
        safe = draw(model, data["safe"], self.batch, rng=rng) if self.prior else None
        for i in range(self.steps):
            z_0, text = next(draws)
            loss = denoising_loss(immunised, z_0, rewrite(text), rng=rng)  # L_A
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {i}: lower {rates}.")
            kept = self.prior * denoising_loss(immunised, *next(safe), rng=rng) if safe else 0.0
            if self.ascent_only or i % (self.inner + self.outer) >= self.inner:
                step(kept - loss if safe else -loss, immunise, clip=1.0)
            elif merger:
                merger.step(loss + kept, adapt, rates["adapt_lr"])
            else:
                step(loss + kept if safe else loss, adapt, clip=1.0)
            report(step=i + 1, total=self.steps, loss=loss.item())
        before = dict(model.denoiser.named_parameters())
        return Delta(dense={f"{model.part}.{n}": (p - before[n]).detach().float().cpu() for n, p in theta.items()})

    def adapt(self, model: Model, concept: Concept, rng: Generator) -> tuple[list[nn.Parameter], Rewrite]:
        """The parameters phi of the simulated adaptation, put into `model`, and what it makes of a batch's text."""
        if self.adaptation == "dreambooth":
            return list(model.denoiser.parameters()), unchanged
        if self.adaptation == "lora":
            add_adapters(model, rank=self.rank, alpha=self.rank, targets=TARGETS, rng=rng)
            return [p for name, p in model.denoiser.named_parameters() if ".lora_" in name], unchanged
        v, encode = new_word(model, concept.phrase)
        return [v], encode

    def rates(self) -> dict[str, float]:
        """The constant rates of phi and theta: the fields, or the release's for this adaptation."""
        adapt_lr, lr = RATES[self.adaptation]
        return {
            "adapt_lr": adapt_lr if self.adapt_lr is None else self.adapt_lr,
            "lr": lr if self.lr is None else self.lr,
        }

    def optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.AdamW:
        """The release's AdamW, at a constant rate."""
        return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), weight_decay=self.weight_decay, eps=1e-8)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Words, if one is learned in the simulated adaptation."""
        return ("words",) if self.adaptation == "textual_inversion" else ()

    @property
    def needed(self) -> frozenset[Need]:
        """Safe images too, to keep what they show or to merge on their captions."""
        return frozenset({"concept", "safe"}) if self.prior or self.merge else self.needs

    @property
    def badge(self) -> Badge:
        """IMMA was run beside its release; MIMA was not, and has one concept of several."""
        return "reconstructed" if self.prior or self.merge or self.theta == "x" else self.fidelity

    def passes(self) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * self.steps * self.batch * (2 if self.prior else 1)


def projections(model: Model, which: Literal["attn", "x"] = "attn") -> dict[str, nn.Parameter]:
    """theta: the query, key, value and output projections of every attention, or of those to the text, by name."""
    keys = [f".{key}." for key in model.targets(TARGETS)]
    found = {name: p for name, p in model.denoiser.named_parameters() if any(key in f".{name}." for key in keys)}
    found = found if which == "attn" else {name: p for name, p in found.items() if name in model.scope("x")}
    if not found:
        raise ValueError(f"expected parameters named {'|'.join(TARGETS)}, got none: has this model attention?")
    return found


@torch.no_grad()
def new_word(model: Model, phrase: str) -> tuple[nn.Parameter, Rewrite]:
    """A word vector `(D,)` that starts as the mean of the phrase's, and the text that consists of it.

    The tokenizer stays as it is: the vector goes between the beginning and the end of the empty text.
    """
    ids, empty = model.ids([phrase])[0], model.words(model.ids([""]))[0]
    length = int((ids == model.tokenizer.eos_token_id).nonzero()[0])
    v = nn.Parameter(model.words(ids[1:length]).mean(0))

    def encode(text: Tensor) -> Tensor:
        caption = torch.cat([empty[:1], v[None], empty[1:-1]])[None]  # the phrase's caption, with v for the phrase
        return model.encode_words(caption).expand(len(text), -1, -1)

    return v, encode


def unchanged(text: Tensor) -> Tensor:
    """The attacker's own captions."""
    return text
