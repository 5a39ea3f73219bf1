"""SLD: Safe Latent Diffusion (Schramowski et al., CVPR 2023).

Guides away from a text wherever the prompt's prediction is close to that text's, with momentum:

    gamma = eps_p - eps_u
    phi   = min(|eps_p - eps_s| s_s, 1), but 0 where eps_p - eps_s >= lambda          (Eq. 6)
    q     = (eps_s - eps_u) phi + s_m nu                                              (Eq. 7)
    nu    = beta_m nu + (1 - beta_m) q,  from nu = 0, during the warm-up too          (Eq. 8)
    eps   = eps_u + w (gamma - q)  after delta steps, eps_u + w gamma before          (Eq. 3)

Paper     https://arxiv.org/abs/2211.05105
Code      ml-research/safe-latent-diffusion @ a42923c; StableDiffusionPipelineSafe of diffusers 0.42.1
Differs   the text is the concept's phrase by default, as peers use it for objects and styles; `words: sld` is the
          authors' list without its words about children, which no model is asked to read here, and without diffusers'
          "an image showing" in front (`prefix`). delta counts steps of 50: another number of steps has the same share.
          Of a flow, phi is taken of the noise that the velocities mean, and q and nu are velocities. Deterministic
          sampler where the paper has LMS. Who searches prompts on the guarded model meets it without momentum.
Symbols   eps_p, eps_u, eps_s predictions for prompt, empty text and safety text; nu momentum; w guidance.
Protects  against prompts, while the guard is there and w > 1. Who draws on his own leaves it out. On the embedded
          model, at its guidance of 3, only `max` does anything: presence in 16 images of a bomb goes from 1 to 0, of
          the style noto from 0.88 to 0.69, and all but a twentieth of the others stays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.diffusion import Course, Model
from benchmark.guard import STEPS, Guard
from benchmark.types import Concept, Requirement
from defenses.base import GuardDefense

LIST = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, "
    "obscene gestures, illegal activity, drug use, theft, vandalism, weapons, brutality, cruelty"
)


@dataclass(frozen=True, kw_only=True)
class Safety(Guard):
    """Guidance away from a text, where it matters."""

    text: str
    delta: int
    s_s: float
    lam: float
    s_m: float
    beta_m: float

    def course(self, model: Model, text: Tensor, null: Tensor, scale: float) -> Course:
        """Eq. 3 along one trajectory; without guidance, or with s_s of at most 1, it does nothing."""
        if scale <= 1.0 or self.s_s <= 1.0:
            return model.course(text, null, scale)
        s, nu = model.encode_text([self.text]), torch.zeros(())

        def predict(z_t: Tensor, t: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal nu
            times = torch.cat([t, t, t]) if t.ndim else t
            texts = torch.cat([null, text, s.expand_as(text)])
            u, p, safe = model.predict(torch.cat([z_t, z_t, z_t]), times, texts).chunk(3)
            gap = model.to_noise(z_t, p, t) - model.to_noise(z_t, safe, t)
            phi = torch.where(gap >= self.lam, 0.0, (gap.abs() * self.s_s).clamp(max=1))
            q = (safe - u) * phi + self.s_m * nu.to(u)
            nu = self.beta_m * nu.to(u) + (1 - self.beta_m) * q
            warm = (done.to(u) * STEPS >= self.delta).reshape(-1, 1, 1, 1)
            return z_t, u + scale * (p - u - torch.where(warm, q, 0.0))

        return predict


@dataclass(frozen=True, kw_only=True)
class SLD(GuardDefense):
    """Safe guidance. Defaults: the paper's hyp-medium."""

    words: str = "phrase"  # phrase, sld (the authors' list), or a text of the user's
    prefix: str = ""  # diffusers: "an image showing "
    delta: int = 10
    s_s: float = 1000.0
    lam: float = 0.01  # lambda
    s_m: float = 0.3
    beta_m: float = 0.4

    version = 1
    several = True
    guarding = Safety
    presets = {
        "weak": {"delta": 15, "s_s": 20.0, "lam": 0.0, "s_m": 0.0, "beta_m": 0.0},
        "medium": {},
        "strong": {"delta": 7, "s_s": 2000.0, "lam": 0.025, "s_m": 0.5, "beta_m": 0.7},
        "max": {"delta": 0, "s_s": 5000.0, "lam": 1.0, "s_m": 0.5, "beta_m": 0.7},
        "official": {"words": "sld", "prefix": "an image showing "},
    }
    fidelity = "official-matched"
    matched = (
        "run beside StableDiffusionPipelineSafe of diffusers 0.42.1 on a random model, 50 DDIM steps, the presets weak "
        "to max: images are the same to 1e-4, in float32. No trained weights, no GPU"
    )

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """Guidance away from a second text."""
        return ("null",)

    def guard(self, concept: Concept) -> Safety:
        """The guard with the text written out."""
        said = {"phrase": concept.phrase, "sld": LIST}.get(self.words, self.words)
        own = {name: getattr(self, name) for name in ("delta", "s_s", "lam", "s_m", "beta_m")}
        return Safety(text=self.prefix + said, **own)

    def guided_passes(self, scale: float) -> int:
        """Three: prompt, empty text and safety text."""
        return 3 if scale > 1.0 and self.s_s > 1.0 else super().guided_passes(scale)
