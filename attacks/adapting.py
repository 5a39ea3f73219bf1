"""Adapters trained on captioned images, on the denoiser and perhaps the text encoders: what adapter attacks share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator, nn

from attacks.base import WeightAttack
from attacks.restricted import check, left
from attacks.trainer import Optimizer, anew, train
from benchmark.diffusion import Model
from benchmark.model.adapters import add_adapters, decomposed, low_rank
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Snapshot

EVERY = "all"  # of the targets: every Linear and Conv2d
OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")  # of CLIP, as train_dreambooth_lora.py has them


@dataclass(frozen=True, kw_only=True)
class AdapterAttack(WeightAttack):
    """Rank-r adapters on the denoiser's attention, trained on images of the concept. Defaults: IMMA's re-learning."""

    rank: int = 4
    alpha: int = 4
    lr: float = 1e-4
    batch: int = 1
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # all: every Linear and Conv2d
    optimizer: Optimizer = "adamw"  # the others: Patronus' attacker
    dora: bool = False  # magnitudes apart from directions
    text_encoder: bool = False  # adapters also on the attention of the text encoders

    needs = frozenset({"concept"})

    def adapted(
        self,
        model: Model,
        examples: Examples,
        *,
        budgets: Sequence[int],
        rng: Generator,
        report: Report,
        frozen: tuple[str, ...] = (),
    ) -> Iterator[Snapshot]:
        """Yield the adapters of `model` after each budget: low rank, or with `dora` the change of the weights.

        Layers whose weights are `frozen` get none.

        Raises:
            ValueError: `targets` name no layer of this model that is left, or the loss is not finite.
        """
        attacked = model.clone(only=())
        wanted: dict[str, Sequence[str]] = {model.part: named(model.denoiser, self.targets)}
        wanted |= {name: OF_TEXT for _, name in model.readers} if self.text_encoder else {}
        if frozen:
            wanted = unfrozen(model, wanted, frozen)
        size: dict[str, Any] = {"rank": self.rank, "alpha": self.alpha, "dora": self.dora}
        layers = {
            part: add_adapters(attacked, part=part, targets=names, rng=rng, **size) for part, names in wanted.items()
        }
        pauses = train(
            attacked,
            [p for part in wanted for p in attacked.parts[part].parameters() if p.requires_grad],
            examples,
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
            encode=anew(attacked, examples.captions) if self.text_encoder else None,
            optimizer=self.optimizer,
        )
        learned = decomposed if self.dora else low_rank
        for step in pauses:
            deltas = [learned(found, part) for part, found in layers.items()]
            yield Snapshot(
                steps=step,
                delta=Delta(
                    dense={name: tensor for delta in deltas for name, tensor in delta.dense.items()},
                    low_rank={name: pair for delta in deltas for name, pair in delta.low_rank.items()},
                ),
            )

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """A text encoder that a delta may change, to train it."""
        return ("readers",) if self.text_encoder else ()

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch


def named(denoiser: nn.Module, targets: Sequence[str]) -> Sequence[str]:
    """The targets; every Linear and Conv2d by its whole name for `all`."""
    if tuple(targets) != (EVERY,):
        return targets
    return [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def unfrozen(model: Model, wanted: Mapping[str, Sequence[str]], frozen: tuple[str, ...]) -> dict[str, Sequence[str]]:
    """The targets of each part as whole names, without those whose weights are frozen; no part without any.

    Raises:
        ValueError: a name in `frozen` is none, or nothing is left.
    """
    check(frozen, [(part, model.parts[part]) for part in wanted])
    endings = {part: model.targets(names) if part == model.part else names for part, names in wanted.items()}
    found = {part: left(part, model.parts[part], names, frozen) for part, names in endings.items()}
    if not any(found.values()):
        raise ValueError(f"expected layers to put adapters on, got none that {list(frozen)} leaves: freeze less.")
    return {part: names for part, names in found.items() if names}
