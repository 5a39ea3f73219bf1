"""Patronus: an internal moderator and non-fine-tunable alignment (Li et al., 2025).

Two trainings. The decoder learns to draw black for malicious latents, the noise predictor to say zero for malicious
pairs; then both learn to stay so under simulated fine-tuning (first-order MAML: the gradient found at the attacked copy
is applied to the original). U2 holds a second U-Net with its gradients and their running mean, in float32: 10.3 GB more
for Stable Diffusion 1.x.

    V(x)    = MSE(phi(x), phi(black))
    L_D     = a V(Dec(Enc(x_M))) + b MSE(Dec(Enc(x_S)), x_S) + s V(Dec(z_M)) + g MSE(Dec(z_S), Dec_0(z_S))        (D1)
    attack: Dec' <- Dec' - lr grad MSE(Dec'(Enc(x_M)), x_M),  or MSE(Dec'(z_M), Dec_0(z_M))
    L_D     with the first term averaged over Dec' on the way, and that of the third added to it                 (D2)
    L_U     = u L_DM(D_S) + v L_black(D_M),  L_black = E || eps_th(z_t, t, c) ||^2                               (U1)
    attack: th' <- th' - lr grad L_DM(D_M)
    L_U     with th' in place of th in both terms                                                                (U2)

Paper     https://arxiv.org/abs/2510.16581
Code      https://github.com/Mustard-lord/Patronus @ 5491b24: final.py, patronus_losses.py (decoder),
          diffusion_unlearn.py, diffusion_antifinetune_dataparallel.py, src/sophon_losses.py (U-Net), scripts/
Differs   L_black is reconstructed: the release calls a `black_loss` that it does not contain; zero noise is the target
          in SOPHON, by the same authors, and its runs are named "black noise". The decoder reads and writes [0, 1]
          everywhere, so that both terms of V are black (the release feeds the encoder [0, 1] images but decodes latents
          to [-1, 1]: its image term draws to 0, which is grey there, its latent term to black), and is not clamped in
          training: a clamp has no gradient outside. The query is half of the last batch, as meant (the release cuts it
          by the number of colours). z_M and z_S are sampled from the captions given, at the native size, with DDIM 50
          and guidance 7.5, the defaults of the release's script (its recorded commands: 100 and 10), and all are used
          (the release trains on a random 80 %). No flips. The attacks' Adam is torch's (the release adds eps to the
          uncorrected root: gradients differ by 4e-6 to 1e-4). U2 is the release on one GPU (its script has two, which
          doubles the attack's rate and lets query and attack overlap). The last step is released (the release picks
          the best by its own attack), and D2 and U2 start from the last.
Symbols   M malicious, S safe; x images; z_M, z_S latents drawn by the diffusion model; phi perceptual network; Dec
          trained decoder with post_quant_conv, Dec_0 frozen, Dec' attacked copy; th LoRA weights, trained alone; th'
          attacked copy of the whole U-Net with them, of whose gradient th gets its own part.
Protects  against fine-tuning of the decoder and of the U-Net on malicious images. A public decoder can be put back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, difference
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.model.perceptual import features
from benchmark.types import Concept, Delta, Report
from defenses.alignment import Alignment
from defenses.base import Badge, Defense
from defenses.moderator import Data, Moderator

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


@dataclass(frozen=True, kw_only=True)
class Patronus(Alignment, Moderator, Defense):
    """Moderate the decoder, align the U-Net. Defaults are the release's (its scripts and config files)."""

    parts: Literal["both", "decoder", "unet"] = "both"
    stages: Literal["both", "unlearn"] = "both"  # unlearn: D1 and U1 alone, which resist no fine-tuning

    version = 2
    needs = frozenset({"concept", "safe"})
    presets = {
        "release": {},
        # Reconstructed: a smaller budget, divided as the release's.
        "fast": {"features": 200, "d1_steps": 500, "d2_steps": 1500, "u1_steps": 500, "u2_steps": 500},
    }
    fidelity = "reconstructed"
    matched = (
        "run beside the release on a random model, ranges, clamp and query alike: D1's losses are equal to 7e-8 and "
        "its gradients to 1.3e-6 (float32), D2's to 3e-7 and 1.5e-6 (1e-6 in float64); U1 to the last bit, U2 to "
        "1e-15 (float64), but with a black_loss of ours, which is missing in the release and reconstructed as the "
        "mean square of the predicted noise. No trained weights, no GPU"
    )

    @property
    def badge(self) -> Badge:
        """The decoder was compared as a whole; what the U-Net is trained for is reconstructed in part."""
        return "official-matched" if self.parts == "decoder" else "reconstructed"

    def protect(self, model: Model, concept: Concept, data: Data, *, rng: Generator, report: Report) -> Delta:
        """Return the change of the VAE's decoder and post_quant_conv, and the adapters of the U-Net's attention.

        Raises:
            ValueError: nothing is left for a query, `targets` name no layer of this model, or the loss is not finite.
            FileNotFoundError: the perceptual network's weights are not at hand.
        """
        count, cut = min(len(data["concept"].images), self.features), self.u2_adapt
        if self.hardened and count < 2:
            raise ValueError(f"expected 2 or more malicious images and features, got {count}: D2 attacks and queries.")
        if self.hardened and not 0 < cut < self.u2_batch:
            raise ValueError(f"expected u2_adapt between 0 and u2_batch ({self.u2_batch}), got {cut}: change it.")
        edited = model.clone(only={"vae"} if self.parts != "unet" else ()).frozen()
        losses: list[Iterator[Tensor]] = []
        layers: dict[str, LoraLayer] = {}
        names: set[str] = set()
        if self.parts != "unet":
            features(self.perceptual)  # its weights may be missing: known before the latents are sampled
            losses.append(self.moderate(edited, model, data, rng, hardened=self.hardened))
            names = {n for n, _ in edited.vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))}
        if self.parts != "decoder":
            layers = add_adapters(edited, rank=self.rank, alpha=self.alpha, targets=self.targets, rng=rng)
            losses.append(self.align(edited, data, rng, hardened=self.hardened))
        for step, loss in enumerate(chain.from_iterable(losses), 1):
            if not torch.isfinite(loss):
                raise ValueError(f"expected a finite loss, got {loss.item()} at step {step}: lower the learning rates.")
            report(step=step, total=self.total, loss=loss.item())
        dense = difference(edited, model, part="vae", names=names).dense
        return replace(low_rank(layers, edited.part), dense=dense)

    @property
    def hardened(self) -> bool:
        """Do D2 and U2 follow?"""
        return self.stages == "both"

    @property
    def total(self) -> int:
        """Optimizer steps of all selected stages."""
        decoder, unet = self.d1_steps + self.hardened * self.d2_steps, self.u1_steps + self.hardened * self.u2_steps
        return (self.parts != "unet") * decoder + (self.parts != "decoder") * unet

    @property
    def removable(self) -> Literal["vae"] | None:
        """The decoder, if it is all."""
        return "vae" if self.parts == "decoder" else None

    def passes(self) -> int:
        """Guided sampling of z_M and z_S, then three for each sample of a forward and backward pass."""
        sampling = 2 * self.features * self.ddim_steps * (1 if self.guidance == 1 else 2)
        u1 = self.u1_steps * self.u1_batch
        u2 = self.u2_steps * self.u2_batch * self.u2_batches
        return (self.parts != "unet") * sampling + (self.parts != "decoder") * 6 * (u1 + self.hardened * u2)
