"""Component swap: puts a part that the defense changed back from the public base; the rest stays defended.

    W_part <- W_part^base        without any training

What an attacker with the weights does first: a defense of the decoder or of the text encoder alone ends here, and with
`keys_values`, the layers that read the text, one in closed form.

Paper     none with a protocol of its own was found; every defense of a decoder or a text encoder is open to it
Code      none
Access    weights, and the base's
Budget    one step, whatever the grid; there is nothing to train. If the defense left the part alone the change is
          empty, and the row says so by a flag.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

from torch import Generator

from attacks.base import WeightAttack
from benchmark.diffusion import Model, difference
from benchmark.types import Concept, Delta, Examples, Report, Requirement, Snapshot


@dataclass(frozen=True, kw_only=True)
class ComponentSwap(WeightAttack):
    """A part of the base in the defended model; a second text encoder comes with the first."""

    part: Literal["vae", "text_encoder", "keys_values"] = "vae"  # keys_values: the weights that read the text

    version = 1
    uses_base = True
    unit = "swap"
    presets = {"text_encoder": {"part": "text_encoder"}, "keys_values": {"part": "keys_values"}}

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """One step, whatever is asked."""
        return (1,)

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """A text encoder, to swap it."""
        return ("readers",) if self.part == "text_encoder" else ()

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
        """Yield the part's way back to the base."""
        report(step=1, total=1, loss=nan)
        yield Snapshot(steps=1, delta=self.back(model, base))

    def back(self, model: Model, base: Model) -> Delta:
        """What must be added to the part."""
        if self.part == "keys_values":
            return difference(base, model, names={f"{layer.name}.weight" for layer in model.text_layers()})
        parts = [difference(base, model, part=name).dense for name in model.parts if name.startswith(self.part)]
        return Delta(dense={name: t for part in parts for name, t in part.items()})
