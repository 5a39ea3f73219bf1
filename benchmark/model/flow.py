"""Rectified flows: a transformer that predicts velocities, drawn by Euler steps (Liu et al. 2023; Esser et al. 2024).

    z_s  = (1 - s) z_0 + s eps                  s from 1 (noise) to 0 (image)
    v    = eps - z_0                            along the whole line
    z_s' = z_s + (s' - s) v^
    z_0^ = z_s - s v^,   eps^ = z_s + (1 - s) v^

The time of these families is s. A training time is an entry of the scheduler's table of 1,000 (as diffusers' scripts
draw it): logit-normal or uniform in the table's index, so that a static shift of the table is in it.
Scopes follow the names of joint attention; the text side is called `add_...`:

x         all projections of the joint attention of the double blocks, and `to_add_out`
x-strict  its add_k_proj and add_v_proj
u         Linear and Conv2d layers outside attention
selfattn  the image side: to_q, to_k, to_v, to_out of the double blocks, and a second image attention where there is one
full      everything

The text enters by linear maps with a bias: `context_embedder` reads its rows, and the pooled vector is read beside the
time. What stands behind them mixes it with the image: keys and values of a later block are no linear map of the text.
No small set isolates the text here: it also enters by the pooled embedding, and mixes with the image in every block.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, TextLayer

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

DOUBLE = "transformer_blocks."
TEXT_SIDE = {"to_q": "add_q_proj", "to_k": "add_k_proj", "to_v": "add_v_proj", "to_out.0": "to_add_out"}


@dataclass(frozen=True, kw_only=True)
class FlowModel(Model):
    """A transformer that predicts velocities.

    Class data:
        density: how a training time is drawn from the table.
        text_first: in joint attention the text's tokens come before the image's.
        entries: the linear maps that read the text, and what of it.

    Raises:
        ValueError: it is to compute in float16, in which its activations overflow.
    """

    part: ClassVar[str] = "transformer"
    is_large: ClassVar[bool] = True
    density: ClassVar[Literal["logit-normal", "uniform"]] = "logit-normal"
    text_first: ClassVar[bool] = True
    entries: ClassVar[Mapping[str, Literal["words", "pooled"]]] = {
        "context_embedder": "words",
        "time_text_embed.text_embedder.linear_1": "pooled",
    }

    transformer: nn.Module
    scheduler: "FlowMatchEulerDiscreteScheduler"

    def __post_init__(self) -> None:
        if self.precision == "float16":
            raise ValueError("expected float32 or bfloat16 for a flow transformer, got float16: it overflows.")

    @property
    def config(self) -> Any:
        """The transformer's."""
        return self.transformer.config

    @property
    def grid(self) -> Tensor:
        """The times `(1000,)` that training draws from, from noise to image; shifted if the shift is static."""
        return self.schedule().sigmas

    def schedule(self) -> "FlowMatchEulerDiscreteScheduler":
        """A scheduler of its own: one that has sampled keeps other times."""
        found: FlowMatchEulerDiscreteScheduler = type(self.scheduler).from_config(self.scheduler.config)
        return found

    def times(self, n: int, *, rng: Generator) -> Tensor:
        """Training times `(n,)` in (0, 1]."""
        grid = self.grid
        u = torch.randn(n, generator=rng).sigmoid() if self.density == "logit-normal" else torch.rand(n, generator=rng)
        return grid[(u * len(grid)).long().clamp(max=len(grid) - 1)]

    def middles(self, parts: int, size: int, *, rng: Generator) -> Tensor:
        """Random times `(size,)`, each in the middle of one of `parts` equal parts of the table."""
        grid = self.grid
        width = max(1, len(grid) // parts)
        return grid[width // 2 + width * torch.randint(min(parts, len(grid)), (size,), generator=rng)]

    def between(self, k: int, parts: int, *, rng: Generator) -> Tensor:
        """A random time `()` in [k / parts, (k + 1) / parts)."""
        return (k + torch.rand((), generator=rng)) / parts

    def noised(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """(1 - s) z_0 + s eps."""
        s = shaped(t, z_0)
        return (1 - s) * z_0 + s * eps

    def target(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """eps - z_0."""
        return eps - z_0

    def to_clean(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """z_s - s v."""
        return z_t - shaped(t, z_t) * predicted

    def to_noise(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """z_s + (1 - s) v."""
        return z_t + (1 - shaped(t, z_t)) * predicted

    def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """v_theta(z_s, s, c): `(B, C, h, w)`; s is `(B,)` or `()`."""
        s = t.to(z_t).expand(len(z_t))
        with self.mixed():
            out = self.velocity(z_t, s, text).to(z_t.dtype)
        self.meter.count(out)
        return out

    @abstractmethod
    def velocity(self, z_s: Tensor, s: Tensor, text: Tensor) -> Tensor:
        """What the transformer answers: `(B, C, h, w)`; s is `(B,)`."""

    def trajectory(self, steps: int) -> Tensor:
        """The scheduler's own times `(steps + 1,)`, from 1 to 0."""
        schedule = self.schedule()
        schedule.set_timesteps(steps, **self.spacing(steps))
        found: Tensor = schedule.sigmas
        return found

    def spacing(self, steps: int) -> dict[str, Any]:
        """What the scheduler is told beside the number of steps: mu, where its shift depends on the image's size."""
        config = self.scheduler.config
        return {"mu": shift_of(config, self.tokens)} if config.use_dynamic_shifting else {}

    @property
    def tokens(self) -> int:
        """How many tokens an image is."""
        _, height, width = self.latent_shape
        patch = int(self.config.patch_size)
        return (height // patch) * (width // patch)

    def step(self, z: Tensor, predicted: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Euler: z + (s' - s) v."""
        return z + (t_next - t).to(z.device) * predicted

    def to_latent(self, z: Tensor) -> Tensor:
        """Shifted and scaled."""
        return (z - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def from_latent(self, z: Tensor) -> Tensor:
        """Scaled and shifted back."""
        return z / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)

    def features(self, answer: Any) -> Tensor:
        """The image's stream: a block answers with the text's and the image's."""
        found: Tensor = answer if isinstance(answer, Tensor) else answer[-1]
        return found

    def joint(self, keys: int) -> tuple[slice, int]:
        """The image behind the text, or before it."""
        n = self.tokens
        return (slice(keys - n, keys), 0) if self.text_first else (slice(0, n), n)

    def layers(self) -> list[nn.Module]:
        """The double blocks and the single ones."""
        found = [getattr(self.transformer, name, ()) for name in ("transformer_blocks", "single_transformer_blocks")]
        return [block for blocks in found for block in blocks]

    @property
    def pooled_rows(self) -> int:
        """The rows of a text, from its end, that hold its pooled vector."""
        return 0

    def text_layers(self) -> list[TextLayer]:
        """The `entries` that this transformer has."""
        have = {name for name, _ in self.transformer.named_modules()}
        found = [TextLayer(name=n, reads=reads, makes="both") for n, reads in self.entries.items() if n in have]
        if not found:
            raise ValueError(f"expected layers that read the text, got none of {', '.join(self.entries)}.")
        return found

    def text_rows(self, text: Tensor, reads: Literal["words", "pooled"]) -> Tensor:
        """The encoders' rows `(B, N, J)`, or the pooled vector `(B, 1, P)`."""
        r = self.pooled_rows
        if reads == "words":
            return text[:, : text.shape[1] - r]
        return text[:, text.shape[1] - r :].flatten(1)[:, None, : int(self.config.pooled_projection_dim)]

    def with_text_rows(self, text: Tensor, rows: Tensor, reads: Literal["words", "pooled"]) -> Tensor:
        """A text with other rows of words, or with another pooled vector."""
        r = self.pooled_rows
        if reads == "words":
            return torch.cat([rows, text[:, text.shape[1] - r :]], dim=1)
        p = F.pad(rows.flatten(1), (0, r * text.shape[2] - rows.shape[-1])).unflatten(1, (r, -1))
        return torch.cat([text[:, : text.shape[1] - r], p], dim=1)

    def targets(self, names: Sequence[str]) -> list[str]:
        """The same layers on both sides of joint attention, as far as this transformer has them."""
        wanted = [*names, *(TEXT_SIDE[name] for name in names if name in TEXT_SIDE)]
        have = [name for name, _ in self.transformer.named_modules()]
        return [name for name in wanted if any(f".{module}".endswith(f".{name}") for module in have)]

    def scope(self, name: Scope) -> set[str]:
        """The parameters of the transformer that a scope trains, by name; see above."""
        layers = {n for n, m in self.transformer.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        chosen = {p for p, _ in self.transformer.named_parameters() if selected(p, name, layers)}
        if not chosen:
            raise ValueError(f"expected a scope that a flow transformer has, got {name!r}: x, x-strict, u or full.")
        return chosen


def selected(parameter: str, scope: Scope, layers: set[str]) -> bool:
    """True if a scope trains a parameter."""
    double, attention = parameter.startswith(DOUBLE), ".attn." in parameter or ".attn2." in parameter
    joint = double and ".attn." in parameter
    text = (joint and ".add_" in parameter) or ".to_add_out." in parameter
    return {
        "x": joint and parameter.rpartition(".")[0] in layers,
        "x-strict": joint and (".add_k_proj." in parameter or ".add_v_proj." in parameter),
        "u": parameter.rpartition(".")[0] in layers and not attention,
        "u-old": False,
        "selfattn": double and attention and not text and parameter.rpartition(".")[0] in layers,
        "full": True,
    }[scope]


def shaped(s: Tensor, like: Tensor) -> Tensor:
    """s, shaped to multiply latents `(B, C, h, w)`."""
    return s.to(like).reshape(-1, 1, 1, 1)


def shift_of(config: Any, tokens: int) -> float:
    """mu of an image of so many tokens: linear between the scheduler's two sizes."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - base) / (high - low)
    return float(tokens * slope + (base - slope * low))
