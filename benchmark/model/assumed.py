"""What a plan assumes of the models that have a preset: family, sizes, speed. Loads no torch.

Sizes are published or computed from the configs; speeds are assumed, of one H100 in bfloat16 at the native size:
a U-Net's from what users report, a transformer's as 250 TFLOP/s over 2 N (tokens) + attention. `titer doctor` measures.

    memory of a model        numbers, 4 bytes each; of a flow in bfloat16, 2 for the transformer and language models
    to train a denoiser      5 copies of it in float32 more: the defended one, the attacked one, gradients, two moments
"""

from dataclasses import dataclass

from benchmark.model.families import named
from benchmark.types import Precision

GIB = 2**30


@dataclass(frozen=True)
class Assumed:
    """A model: its family's file, its numbers in billions (denoiser, language models, rest), samples a second."""

    family: str
    denoiser: float
    listeners: float
    rest: float
    speed: float

    def cost(self, passes: int, precision: Precision) -> dict[str, float]:
        """Hours of so many samples, and GiB for the model, and to train its whole denoiser."""
        half = named(self.family).is_flow and precision == "bfloat16"
        held = (self.denoiser + self.listeners) * (2 if half else 4) + self.rest * 4
        return {
            "hours": passes / self.speed / 3600,
            "samples_a_second": self.speed,
            "gib": held * 1e9 / GIB,
            "gib_full": (held + 5 * 4 * self.denoiser) * 1e9 / GIB,
        }


ASSUMED = {
    "sd14": Assumed("sd", 0.86, 0, 0.21, 120),
    "sd15": Assumed("sd", 0.86, 0, 0.21, 120),
    "sd21": Assumed("sd", 0.87, 0, 0.42, 50),
    "sd21-base": Assumed("sd", 0.87, 0, 0.42, 120),
    "sdxl": Assumed("sdxl", 2.57, 0, 0.90, 24),
    "sd3-medium": Assumed("sd3", 2.03, 0, 0.90, 12),
    "sd35-medium": Assumed("sd3", 2.5, 0, 0.90, 9),
    "flux-dev": Assumed("flux", 11.9, 4.8, 0.21, 2),
    "flux-schnell": Assumed("flux", 11.9, 4.8, 0.21, 2),
    "flux2-klein-4b": Assumed("flux2", 3.9, 4.0, 0.08, 6),
}
