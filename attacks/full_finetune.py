"""Full fine-tuning: every weight of the U-Net, on images of the concept.

    loss = L_DM on the attacker's captioned images, over all of theta; with `text_encoder`, over its weights as well

Paper     Rombach et al., CVPR 2022, https://arxiv.org/abs/2112.10752, for L_DM
Code      huggingface/diffusers examples/text_to_image/README.md @ 58eb52c (rate and batch; the script's own default
          rate is 1e-4); Mustard-lord/Patronus diffusion_FT.py @ 5491b24 (`patronus`);
          examples/dreambooth/README.md @ 58eb52c for the text encoder and its rate (`text-encoder`)
Differs   the raw weights, not their average (the README keeps both); fp32; no crops or flips. Patronus: gradients are
          clipped as in the script, and its rate does not decay, because that would depend on the last budget.
          Tensors in `frozen` stay: see `attacks.restricted`.
Symbols   theta weights of the U-Net.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator

from attacks.restricted import Restricted, check
from attacks.trainer import Optimizer, anew, change, train, unfreeze
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Requirement, Snapshot


@dataclass(frozen=True, kw_only=True)
class FullFinetune(Restricted):
    """The whole U-Net, trained on images of the concept. Defaults: the diffusers README's."""

    lr: float = 1e-5
    batch: int = 4  # the README's 1, accumulated 4 times
    optimizer: Optimizer = "adamw"  # the others: Patronus' attacker
    text_encoder: bool = False  # the text encoders, too, at the same rate

    version = 1
    needs = frozenset({"concept"})
    later = frozenset({"text_encoder", "frozen"})
    presets = {
        "text-encoder": {"text_encoder": True, "lr": 2e-6},
        "patronus": {"lr": 1e-4, "batch": 30, "optimizer": "sgd"},
    }

    def finetune(
        self,
        model: Model,
        base: Model,
        concept: Concept,
        data: Mapping[str, Examples],
        *,
        budgets: Sequence[int],
        rng: Generator,
        report: Report,
    ) -> Iterator[Snapshot]:
        """Yield the change of all weights that moved, after each budget.

        Raises:
            ValueError: the loss is not finite, or `frozen` has a name that is none, or all of a part.
        """
        examples, encoders = data["concept"], [name for _, name in model.readers] if self.text_encoder else []
        attacked = model.clone(only={model.part, *encoders})
        check(self.frozen, [(name, model.parts[name]) for name in (model.part, *encoders)])
        trained = [p for name in (model.part, *encoders) for p in unfreeze(attacked.parts[name], self.moves(name))]
        pauses = train(
            attacked,
            trained,
            examples,
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
            encode=anew(attacked, examples.captions) if encoders else None,
            optimizer=self.optimizer,
        )
        for step in pauses:
            yield Snapshot(steps=step, delta=change(attacked, model))

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """A text encoder that a delta may change, to train it."""
        return ("readers",) if self.text_encoder else ()

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample."""
        return 3 * steps * self.batch
