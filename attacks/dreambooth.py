"""DreamBooth: teaches a rare identifier to mean the subject (Ruiz et al., CVPR 2023).

    loss = L_DM(x, "... [identifier] [subject] ...") + prior_weight L_DM(x_pr, c_pr)

The phrase of the concept is never said: captions and evaluation prompts say identifier and subject in its place, or
before the text where the phrase is not in it. The identifier is IMMA's attacker's `&m`; its defender trains on `*s`.

Paper     https://arxiv.org/abs/2208.12242
Code      huggingface/diffusers examples/dreambooth/train_dreambooth.py @ 58eb52c; amberyzheng/IMMA
          scripts/run_db.sh @ 2f55041 (identifier)
Differs   the attacker's captions, reworded, instead of one instance prompt; the prior's images are the benign split
          with its captions, drawn by the base, instead of 200 of the class; the text encoder stays, and tensors in
          `frozen`, too (see `attacks.restricted`); fp32; no crops.
Symbols   x images of the concept; x_pr, c_pr images and captions of the prior.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Generator

from attacks.base import Need
from attacks.restricted import Restricted, check
from attacks.trainer import train, unfreeze
from attacks.words import substitute
from benchmark.diffusion import Model, difference
from benchmark.types import Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class DreamBooth(Restricted):
    """The whole U-Net, taught an identifier for the concept. Defaults: the diffusers README's, without the prior."""

    identifier: str = "&m"
    lr: float = 5e-6
    batch: int = 1
    prior_weight: float = 0.0  # 0: without prior preservation

    version = 1
    later = frozenset({"frozen"})
    presets = {"prior": {"prior_weight": 1.0}}

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]  # a field decides, and plans ask an instance
        """Unrelated images only for prior preservation."""
        return frozenset({"concept", "benign"} if self.prior_weight else {"concept"})

    def reword(self, text: str, concept: Concept) -> str:
        """The text, with identifier and subject for the phrase."""
        return substitute(text, concept.phrase, f"{self.identifier} {concept.subject}".strip())

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
            ValueError: the loss is not finite, or `frozen` has a name that is none, or all of them.
        """
        check(self.frozen, [(model.part, model.denoiser)])
        attacked, examples = model.clone(only={model.part}), data["concept"]
        pauses = train(
            attacked,
            unfreeze(attacked.denoiser, self.moves(model.part)),
            replace(examples, captions=tuple(self.reword(caption, concept) for caption in examples.captions)),
            lr=self.lr,
            batch=self.batch,
            budgets=budgets,
            rng=rng,
            report=report,
            prior=data["benign"] if self.prior_weight else None,
            prior_weight=self.prior_weight,
        )
        for step in pauses:
            yield Snapshot(steps=step, delta=difference(attacked, model))

    def passes(self, steps: int) -> int:
        """One forward and one backward pass, counted as three, for each sample of each term."""
        return 3 * steps * self.batch * (2 if self.prior_weight else 1)
