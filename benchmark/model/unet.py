"""Stable Diffusion's denoiser: a U-Net that predicts noise, drawn by DDIM.

    z_t      = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps
    f        = eps_theta; of a model that predicts v, eps = sqrt(ab_t) v + sqrt(1 - ab_t) z_t
    z_t'     = sqrt(ab_t') z_0^ + sqrt(1 - ab_t') eps^,  z_0^ = (z_t - sqrt(1 - ab_t) eps^) / sqrt(ab_t)

t is a number of the training schedule, an integer from 0.
Scopes are the sets that ESD's two releases name:

x         all of attn2, the attention to the text (ESD-x)
x-strict  its to_k and to_v
u         Linear and Conv2d layers outside attn2 (ESD-u of the diffusers release)
u-old     all but attn2, the output layers and the time embedding (ESD-u of the CompVis release, `noxattn`)
selfattn  all of attn1
full      everything

Code      https://github.com/rohitgandikota/erasing (scopes)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from benchmark.diffusion import Model, Scope, TextLayer
from benchmark.solvers import Solved, Walk, by_diffusers

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, PNDMScheduler, UNet2DConditionModel

KEYS_VALUES = (".attn2.to_k.weight", ".attn2.to_v.weight")


@dataclass(frozen=True, kw_only=True)
class UNetModel(Model):
    """A U-Net that predicts noise: Stable Diffusion 1 and 2, and what derives from them."""

    part: ClassVar[str] = "unet"

    unet: "UNet2DConditionModel"
    scheduler: "DDPMScheduler"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of the U-Net's input at its native size."""
        side = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), side, side

    @property
    def text_shape(self) -> tuple[int, int]:
        """`(L, D)` of a text that `predict` reads."""
        return int(self.tokenizer.model_max_length), int(self.unet.config.cross_attention_dim)

    @property
    def levels(self) -> int:
        """How many times there are."""
        return int(self.scheduler.config.num_train_timesteps)

    def condition(self, text: Tensor) -> dict[str, Any]:
        """A text `(B, L, D)` as the keywords that the U-Net takes."""
        return {"encoder_hidden_states": text}

    def times(self, n: int, *, rng: Generator) -> Tensor:
        """Uniform over the schedule, `(n,)`."""
        return torch.randint(self.levels, (n,), generator=rng)

    def middles(self, parts: int, size: int, *, rng: Generator) -> Tensor:
        """Random times `(size,)`, each in the middle of one of `parts` equal parts of the schedule."""
        width = max(1, self.levels // parts)
        return width // 2 + width * torch.randint(min(parts, self.levels), (size,), generator=rng)

    def between(self, k: int, parts: int, *, rng: Generator) -> Tensor:
        """A random time `()` in [1000 k / parts, 1000 (k + 1) / parts) of 1000 times."""
        low, high = (round(edge / parts * self.levels) for edge in (k, k + 1))
        return torch.randint(low, high, (), generator=rng)

    def alpha_bar(self, t: Tensor, *, like: Tensor) -> Tensor:
        """ab_t, shaped to multiply latents `(B, C, h, w)`; between two times sigma is interpolated, as in diffusers."""
        at = t.to("cpu")
        if not at.is_floating_point():
            return self.scheduler.alphas_cumprod.to(like)[at].reshape(-1, 1, 1, 1)
        sigmas = (1 / self.scheduler.alphas_cumprod - 1).sqrt()
        below = at.long().clamp(max=len(sigmas) - 1)
        sigma = torch.lerp(sigmas[below], sigmas[(below + 1).clamp(max=len(sigmas) - 1)], at - below)
        return (1 / (1 + sigma**2)).to(like).reshape(-1, 1, 1, 1)

    def noised(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t of z_0 and eps `(B, C, h, w)` at t `(B,)`."""
        ab = self.alpha_bar(t, like=z_0)
        return ab.sqrt() * z_0 + (1 - ab).sqrt() * eps

    def target(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """eps."""
        return eps

    def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """eps_theta(z_t, t, c): `(B, C, h, w)`; t is `(B,)` or `()`. A v-predicting model's answer is converted."""
        with self.mixed():
            out = self.unet(z_t, t, **self.condition(text)).sample
        out = out.to(z_t.dtype)
        if self.scheduler.config.prediction_type == "v_prediction":
            ab = self.alpha_bar(t, like=z_t)
            out = ab.sqrt() * out + (1 - ab).sqrt() * z_t
        self.meter.count(out)
        return out

    def to_clean(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """(z_t - sqrt(1 - ab_t) eps) / sqrt(ab_t)."""
        ab = self.alpha_bar(t, like=z_t)
        return (z_t - (1 - ab).sqrt() * predicted) / ab.sqrt()

    def to_noise(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The prediction itself."""
        return predicted

    def trajectory(self, steps: int) -> Tensor:
        """DDIM's times, as Stable Diffusion ships it: evenly spaced from 1 upwards, and 0 in the end; or a solver's."""
        if self.solver not in ("ddim", "pndm"):
            times = by_diffusers(self.solver, self.scheduler.config, steps).timesteps
            return torch.cat([times, torch.zeros(1, dtype=times.dtype)])
        spacing = self.levels // steps
        return torch.cat([torch.arange(steps).flip(0) * spacing + 1, torch.zeros(1, dtype=torch.long)])

    def step(self, z: Tensor, predicted: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """DDIM with eta 0 (Song et al. 2021, Eq. 12)."""
        ab, ab_next = (self.scheduler.alphas_cumprod[int(time)] for time in (t, t_next))
        z_0 = (z - (1 - ab) ** 0.5 * predicted) / ab**0.5
        return ab_next**0.5 * z_0 + (1 - ab_next) ** 0.5 * predicted

    def pndm(self, steps: int) -> "PNDMScheduler":
        """PNDM as Stable Diffusion 1.x ships it: without Runge-Kutta steps (PLMS)."""
        found: PNDMScheduler = by_diffusers("pndm", self.scheduler.config, steps)
        return found

    def walk(self, steps: int, start: int = 0) -> Walk:
        """A trajectory by the model's solver, from step `start`."""
        if self.solver == "ddim":
            return super().walk(steps, start)
        return Solved(self.solver, self.scheduler.config, self.trajectory(steps), start)

    def layers(self) -> list[nn.Module]:
        """The resnets and attentions of all blocks: `(B, C, h, w)`."""
        u = self.unet
        blocks = [block for block in (*u.down_blocks, u.mid_block, *u.up_blocks) if block is not None]
        kinds = ("resnets", "attentions")
        return [m for block in blocks for kind in kinds for m in getattr(block, kind, ()) if m is not None]

    def text_layers(self) -> list[TextLayer]:
        """to_k and to_v of the attention to the text. A pooled embedding beside them (SDXL) enters elsewhere."""
        names = [name.removesuffix(".weight") for name, _ in self.unet.named_parameters() if name.endswith(KEYS_VALUES)]
        if not names:
            raise ValueError("expected an attention to the text, got none: has this U-Net such layers?")
        return [
            TextLayer(name=name, reads="words", makes="keys" if name.endswith("to_k") else "values") for name in names
        ]

    @contextmanager
    def attending(self) -> Iterator[list[Tensor]]:
        """The attention probabilities of each attn2."""
        seen = list[Tensor]()

        def look(module: Any, args: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            q, k = module.to_q(args[0]), module.to_k(options["encoder_hidden_states"])
            found = module.get_attention_scores(module.head_to_batch_dim(q), module.head_to_batch_dim(k))
            seen.append(found.unflatten(0, (len(q), -1)))

        modules = [module for name, module in self.unet.named_modules() if name.endswith(".attn2")]
        handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in modules]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def scope(self, name: Scope) -> set[str]:
        """The parameters of the U-Net that a scope trains, by name; see above."""
        layers = {n for n, m in self.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        chosen = set()
        for parameter, _ in self.unet.named_parameters():
            cross, in_layer = ".attn2." in parameter, parameter.rpartition(".")[0] in layers
            kept_out = parameter.startswith(("conv_out", "conv_norm_out", "time_embedding"))
            wanted = {
                "x": cross,
                "x-strict": cross and (".to_k." in parameter or ".to_v." in parameter),
                "u": in_layer and not cross,
                "u-old": not cross and not kept_out,
                "selfattn": ".attn1." in parameter,
                "full": True,
            }[name]
            if wanted:
                chosen.add(parameter)
        if not chosen:
            raise ValueError(f"expected scope {name!r} to select parameters, got none: has this U-Net such layers?")
        return chosen
