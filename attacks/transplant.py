"""Adapter transplant: an adapter trained on the public base, put onto the defended model.

    A, B = argmin L_DM(base + (alpha / r) B A);   W_def x -> W_def x + (alpha / r) B A x

The world's adapters are trained on the base and loaded into its fine-tunes. An immunisation that makes training on the
defended model hard is passed by; where the base knows the concept already there is little to learn, and so to carry.

Paper     none with a protocol of its own against defenses was found. That adapters of a base work in its fine-tunes is
          the use that IP-Adapter, https://arxiv.org/abs/2308.06721, and LCM-LoRA, https://arxiv.org/abs/2311.05556,
          document
Code      as `lora`: huggingface/diffusers examples/text_to_image/train_text_to_image_lora.py @ 58eb52c
Differs   as `lora`, whose training and settings it has, on another model.
Symbols   W weights of a layer of the defended model; A, B as in `lora`.
Access    weights of the base; the defended model must take an adapter.
Budget    optimizer steps on the base: trained once, and tried on every defense.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator

from attacks.adapting import AdapterAttack
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class Transplant(AdapterAttack):
    """Rank-r adapters of the base's attention, on the defended model. Fields and defaults: those of `lora`."""

    version = 1
    uses_base = True
    replayed = True
    unit = "optimizer steps on the base"
    presets = {"all-layers": {"targets": ("all",)}}

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
        """Yield the base's adapters after each budget; the defended model is not read.

        Raises:
            ValueError: `targets` name no layer of this model, or the loss is not finite.
        """
        yield from self.adapted(base, data["concept"], budgets=budgets, rng=rng, report=report)
