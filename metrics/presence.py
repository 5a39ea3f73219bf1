"""Presence: a judge says whether an image shows what its prompt should show.

    p     = the judge's probability of the prompt's label; zero-shot: softmax(scale cos(E_I(image), E_T(labels)))[label]
    value = 1 if p >= threshold, or if fewer than k of all that the judge chooses from are likelier (topk), else 0

`metrics.judges` lists the judges. A zero-shot judge chooses among the concept card's labels, with `something else` as
the way out, so that a blank or broken image is no concept; a classifier among its own classes, as in published rates.

Direction  higher is better for the attacker on prompts of the concept, for fidelity on retained ones.
Range      {0, 1}; the raw p of the prompt's label and its rank are kept, and `p[label]` for each label of the card.
Per        image.
Backbone   the judge: `model`, or what the concept card names.
Reference  open_clip's zero-shot classification on the same labels; torchvision's and transformers' own pipelines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmark.types import Concept, Prompt, Split
from metrics.base import ImageMetric
from metrics.judge import Judge, Rule, counts, rates
from metrics.judges import OWN, find

CARD = "card:"


@dataclass(frozen=True, kw_only=True)
class Presence(ImageMetric):
    """Is the prompt's label in the image?"""

    model: str = "card:primary"  # a judge, or which of the concept card's; open_clip's ViT-B-32 if the card names none
    pretrained: str = "openai"  # for a `model` of open_clip's without a kind before it
    threshold: Rule | None = None  # None: the judge's own rule

    version = 1
    splits = frozenset({"concept", "retained", "cross"})
    higher_is = "attacker"
    bounds = (0.0, 1.0)
    reads_concept = True
    thresholds = frozenset({"threshold"})

    @property
    def judge(self) -> Judge:
        """Who judges."""
        if self.model.startswith(CARD):
            return find("ViT-B-32", self.pretrained)
        return find(self.model, self.pretrained)

    @property
    def rule(self) -> Rule:
        """The threshold in force."""
        return self.judge.rule() if self.threshold is None else self.threshold

    def identity(self) -> str:
        """The rule and the judge."""
        rule = self.rule
        return f"{rule if isinstance(rule, str) else f'p>={rule}'}@{self.judge.identity()}"

    def for_card(self, concept: Concept) -> "Presence":
        """Itself with the judge that the entry names, else the card, and the rule that is then in force.

        Raises:
            ValueError: there is no such judge.
        """
        named = self
        if self.model.startswith(CARD):
            which = self.model.removeprefix(CARD)
            if which in concept.judges:
                named = replace(self, model=concept.judges[which])
            elif which == "primary":
                named = replace(self, model="ViT-B-32")
            else:
                known = ", ".join(concept.judges) or "none"
                raise ValueError(
                    f"expected the judge {which!r} in the card {concept.name!r}, got {known}: add it under `judges`, "
                    "or give the metric a `model`."
                )
        if ":" in named.model and named.model.partition(":")[0] not in OWN:
            named = replace(named, pretrained="")
        return replace(named, threshold=named.rule)

    def takes(self, split: Split, concept: Concept) -> bool:
        """A binary judge sees the concept's images alone."""
        return super().takes(split, concept) and (split == "concept" or not self.for_card(concept).judge.binary)

    def places(self) -> Mapping[str, str]:
        """A judge's path is not part of the score's key: its weights are, by their hash."""
        place = self.judge.place()
        return {"model": place} if place else {}

    def check(self, concept: Concept | None, prompts: Sequence[Prompt]) -> None:
        """The judge is at hand and knows the prompts' labels."""
        assert concept is not None
        self.judge.check(concept, dict.fromkeys(str(prompt.label) for prompt in prompts))

    def calibration(self, concept: Concept) -> tuple[float, float] | None:
        """The judge's true and false positive rate for the concept; None where it is not calibrated."""
        return rates(self.judge, self.identity(), concept.name)

    def calibrated_on(self, concept: Concept) -> tuple[int, int] | None:
        """How many pictures with and without the concept the card is based on, by its worst kinds of them."""
        return counts(self.judge, self.identity(), concept.name)

    def score(self, images: Tensor, prompts: Sequence[Prompt], concept: Concept | None) -> Mapping[str, Tensor]:
        """`value`, `p`, `rank` and each `p[label]`: `(B,)`. Every prompt must have a label."""
        if concept is None:
            raise ValueError("expected a concept card to judge by, got none: presence needs its labels.")
        labels, seen = list(concept.labels), self.judge.see(images, concept)
        own = torch.arange(len(images)), torch.tensor([labels.index(str(prompt.label)) for prompt in prompts])
        raw = {"p": seen.p[own], "rank": seen.rank[own]}
        return {**self.rethreshold(raw, concept), **raw, **{f"p[{x}]": seen.p[:, i] for i, x in enumerate(labels)}}

    def rethreshold(self, columns: Mapping[str, Tensor], concept: Concept | None) -> Mapping[str, Tensor]:
        """`value` from `p` or `rank`; missing where the number that decides is."""
        rule = self.rule
        decides = columns["rank" if isinstance(rule, str) else "p"]
        hit = decides < int(rule.removeprefix("top")) if isinstance(rule, str) else decides >= rule
        return {"value": torch.where(decides.isnan(), decides, hit.float())}

    def probabilities(self, images: Tensor, concept: Concept) -> Tensor:
        """p of every label, in the card's order: `(B, labels)`."""
        return self.judge.see(images, concept).p
