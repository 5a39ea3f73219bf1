"""The fifteen fine-tunings that ResAlign simulates: the source and the differences are in `resalign`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from benchmark.diffusion import Model, denoising_loss
from benchmark.model.adapters import low_rank
from benchmark.types import Concept, Examples
from defenses.data import draw
from defenses.meta import attack, trainable

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

Pairs = Iterator[tuple[Tensor, Tensor]]  # endless z_0 (B, C, h, w) and text (B, L, D)
CAPTION, CLASS = "a photo of *s {}", "person"  # of DreamBooth; the class where the card has none


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One simulated fine-tuning: of the adapters, as DreamBooth, or of the whole denoiser."""

    lr: float
    optimizer: Literal["gd", "adam", "adamw"]
    steps: int
    kind: Literal["adapters", "dreambooth", "full"] = "adapters"

    @property
    def passes(self) -> int:
        """For a batch of one: a forward and a backward pass, and those of DreamBooth's prior."""
        return 3 * self.steps * (2 if self.kind == "dreambooth" else 1)

    def scaled(self, steps: int | None, rate: float) -> "Configuration":
        """With so many steps (None: its own), at so many times its rate."""
        return replace(self, steps=self.steps if steps is None else steps, lr=self.lr * rate)


def of(lr: float, optimizer: Literal["gd", "adam", "adamw"], *steps: int) -> tuple[Configuration, ...]:
    """Configurations that differ in their steps."""
    return tuple(Configuration(lr=lr, optimizer=optimizer, steps=n) for n in steps)


CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration(lr=1e-4, optimizer="gd", steps=5, kind="dreambooth"),
    *of(1e-4, "gd", 20, 30, 5, 10),
    *of(1e-4, "adam", 5, 30),
    *of(1e-5, "gd", 30, 5, 10, 30),
    *of(1e-5, "adam", 10, 10),
    *of(1e-6, "gd", 20),
    Configuration(lr=1e-6, optimizer="adamw", steps=5, kind="full"),
)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the attacks train on: pairs, DreamBooth's caption `(1, L, D)`, and pairs for its prior."""

    inner: Pairs
    caption: Tensor
    prior: Pairs

    @classmethod
    def of(cls, model: Model, concept: Concept, inner: Examples, prior: Examples, batch: int, rng: Generator) -> "Data":
        """Endless batches of both sets."""
        with torch.no_grad():
            caption = model.encode_text([CAPTION.format(concept.subject or CLASS)])
        pairs, priors = (draw(model, examples, batch, rng=rng) for examples in (inner, prior))
        return cls(inner=pairs, caption=caption, prior=priors)


def mixed(one: Examples, other: Examples) -> Examples:
    """Both sets as one."""
    return Examples(images=torch.cat([one.images, other.images]), captions=(*one.captions, *other.captions))


def finetune(learner: Model, model: Model, how: Configuration, data: Data, rank: int, *, rng: Generator) -> None:
    """Attack the adapters of `learner`, which are all that it trains, on a base `model`."""
    if how.kind == "full":
        whole(learner, model, how, data, rank, rng)
        return
    optimizer = built(how, trainable(learner.denoiser))

    def loss() -> Tensor:
        z_0, c = next(data.inner)
        if how.kind == "adapters":
            return denoising_loss(learner, z_0, c, rng=rng)
        taught = denoising_loss(learner, z_0, data.caption.expand(len(z_0), -1, -1), rng=rng)
        return taught + denoising_loss(learner, *next(data.prior), rng=rng)

    for _ in attack(optimizer, (loss for _ in range(how.steps))):
        pass


def whole(learner: Model, model: Model, how: Configuration, data: Data, rank: int, rng: Generator) -> None:
    """Train every weight of the adapted denoiser; the adapters become what is nearest to the change of their layers."""
    layers = adapted(learner)
    tuned = model.with_delta(low_rank(layers, learner.part)).clone(only={model.part})
    optimizer = built(how, list(tuned.denoiser.requires_grad_(True).parameters()))
    for _ in attack(optimizer, (lambda: denoising_loss(tuned, *next(data.inner), rng=rng) for _ in range(how.steps))):
        pass
    for name, layer in layers.items():
        change = (
            tuned.denoiser.get_parameter(f"{name}.weight") - model.denoiser.get_parameter(f"{name}.weight")
        ).detach()
        U, S, V = torch.linalg.svd(change.float(), full_matrices=False)
        root = S[:rank].sqrt()
        layer.lora_A["default"].weight.data.copy_(root[:, None] * V[:rank])
        layer.lora_B["default"].weight.data.copy_(U[:, :rank] * root)


def adapted(model: Model) -> dict[str, "LoraLayer"]:
    """The adapters of a model, by layer."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.denoiser.named_modules() if isinstance(module, LoraLayer)}


def built(how: Configuration, parameters: Sequence[Tensor]) -> Optimizer:
    """The attacker's optimizer."""
    cls = {"gd": SGD, "adam": Adam, "adamw": AdamW}[how.optimizer]
    return cls(parameters, lr=how.lr)
