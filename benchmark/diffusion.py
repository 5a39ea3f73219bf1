"""What every method shares: a latent diffusion model, its noise prediction, its loss, its sampler.

    z_t      = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps
    L_DM     = E || eps_theta(z_t, t, c) - eps ||^2
    guided   = eps(z_t, null) + w (eps(z_t, c) - eps(z_t, null))

A leaf beside `types`. `Model` is Stable Diffusion 1 and 2, and what others derive from: `benchmark.model.families`.
A text is one tensor `(B, L, D)` whatever the family: methods stack, index and expand it, and never look inside.
Random numbers are drawn on the CPU from the generator given, then moved, so that every device sees the same ones.
Counted passes are samples through the U-Net, whatever the batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.types import Delta, Precision

if TYPE_CHECKING:  # these take seconds to import, and planning needs none of them
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

HALF: Mapping[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Meter:
    """Counts the samples that pass through the U-Net, forward and backward."""

    unet_forward: int = 0
    unet_backward: int = 0

    def count(self, eps: Tensor) -> None:
        """Count one prediction, and its backward pass if there is one."""
        samples = len(eps)
        self.unet_forward += samples
        if eps.requires_grad:
            eps.register_hook(lambda _: self._backward(samples))

    def _backward(self, samples: int) -> None:
        self.unet_backward += samples


def open_gate(texts: Sequence[str]) -> None:
    """Let every text pass: the gate of a model that no run has in hand."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A latent diffusion model: the parts that methods read or train, and its training schedule.

    Weights are float32, always. With `precision` bfloat16 the U-Net computes in mixed precision; what it predicts,
    the losses and the updates stay float32. float16 does so only where no gradient is asked for: without scaling of
    the loss, small gradients would vanish in it.

    Every text passes `gate` before it is tokenized, which raises for what may not be read: see `benchmark.data.safety`.
    """

    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel"
    tokenizer: "CLIPTokenizer"
    scheduler: "DDPMScheduler"
    meter: Meter = field(default_factory=Meter)
    precision: Precision = "float32"
    gate: Callable[[Sequence[str]], None] = open_gate

    @property
    def readers(self) -> tuple[tuple[str, str], ...]:
        """The fields of each tokenizer and of the text encoder that reads it."""
        return (("tokenizer", "text_encoder"),)

    @property
    def device(self) -> torch.device:
        """Where the U-Net is, and everything with it."""
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of the U-Net's input at its native size."""
        side = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), side, side

    @property
    def text_shape(self) -> tuple[int, int]:
        """`(L, D)` of a text that `predict_noise` reads."""
        return int(self.tokenizer.model_max_length), int(self.unet.config.cross_attention_dim)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules that a delta can change, by the prefix of its names."""
        encoders = {name: getattr(self, name) for _, name in self.readers}
        return {"unet": self.unet, "vae": self.vae, **encoders}

    @property
    def components(self) -> dict[str, Any]:
        """What a pipeline of diffusers is made of: the parts and the tokenizers, by its names for them."""
        return {**self.parts, **{name: getattr(self, name) for name, _ in self.readers}}

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The token table `(V, D)` of each text encoder."""
        return tuple(getattr(self, name).get_input_embeddings().weight for _, name in self.readers)

    @property
    def table(self) -> Tensor:
        """The token table `(V, D)`, of all text encoders side by side: what `words` and learned vectors are made of."""
        return self.tables[0] if len(self.tables) == 1 else torch.cat(self.tables, dim=1)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Token numbers `(B, L)`: begin, words, end, padding. Longer texts are cut as in Stable Diffusion."""
        self.gate(texts)
        return tokenize(self.tokenizer, texts).to(self.device)

    def words(self, ids: Tensor) -> Tensor:
        """Rows of the token table, before positions are added: `(B, L, D)` of ids `(B, L)`."""
        return self.text_encoder.get_input_embeddings()(ids)

    def encode_words(self, words: Tensor) -> Tensor:
        """The encoding `(B, L, D)` of a text given as word vectors `(B, L, D)`: gradients reach the words."""
        return read(self.text_encoder, words)[0]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The encoding of texts, `(B, L, D)`: here the last hidden states of the text encoder."""
        return self.text_encoder(self.ids(texts))[0]

    def condition(self, text: Tensor) -> dict[str, Any]:
        """A text `(B, L, D)` as the keywords that the U-Net takes."""
        return {"encoder_hidden_states": text}

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents `(B, C, h, w)` of images in [0, 1]."""
        found = self.vae.encode((images * 2 - 1).to(self.device, self.vae.dtype)).latent_dist
        factor = self.vae.config.scaling_factor
        return found.mean * factor, found.std * factor

    def decode(self, z: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] of scaled latents."""
        x_pm1 = self.vae.decode(z / self.vae.config.scaling_factor).sample
        return (x_pm1 / 2 + 0.5).clamp(0, 1)

    def predict_noise(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """eps_theta(z_t, t, c): `(B, C, h, w)`; t is `(B,)` or `()`. A v-predicting model's answer is converted."""
        half = HALF.get(self.precision)
        mixed = half is not None and not (half == torch.float16 and torch.is_grad_enabled())
        with torch.autocast(self.device.type, half or torch.bfloat16, enabled=mixed):
            out = self.unet(z_t, t, **self.condition(text)).sample
        out = out.to(z_t.dtype)
        if self.scheduler.config.prediction_type == "v_prediction":
            ab = self.alpha_bar(t, like=z_t)
            out = ab.sqrt() * out + (1 - ab).sqrt() * z_t
        self.meter.count(out)
        return out

    def alpha_bar(self, t: Tensor, *, like: Tensor) -> Tensor:
        """ab_t, shaped to multiply latents `(B, C, h, w)`."""
        return self.scheduler.alphas_cumprod.to(like)[t.to("cpu")].reshape(-1, 1, 1, 1)

    def add_noise(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t of z_0 and eps `(B, C, h, w)` at t `(B,)`."""
        ab = self.alpha_bar(t, like=z_0)
        return ab.sqrt() * z_0 + (1 - ab).sqrt() * eps

    def clone(self) -> "Model":
        """A copy whose weights can be trained without touching this one; the meter is shared."""
        copies: dict[str, Any] = {name: deepcopy(part) for name, part in self.parts.items()}
        return replace(self, **copies)

    def frozen(self) -> "Model":
        """This model, in evaluation mode and without gradients."""
        for part in self.parts.values():
            part.eval().requires_grad_(False)
        return self

    def with_delta(self, *deltas: Delta) -> "Model":
        """A copy with `deltas` applied in order.

        Raises:
            ValueError: a tensor that this model lacks, or of another shape.
        """
        changed = self.clone()
        for delta in deltas:
            apply(delta, changed.parts)
        return changed.frozen()

    def with_tokens(self, tokens: Mapping[str, Tensor]) -> "Model":
        """A copy that knows new words: each vector `(D,)` becomes the row of its word, as textual inversion does.

        Raises:
            ValueError: a tokenizer knows a word already, or a vector has another length than the table's rows.
        """
        changed = replace(self, **{name: deepcopy(getattr(self, name)) for pair in self.readers for name in pair})
        for word, vector in tokens.items():
            for (tokenizer, encoder), row in zip(self.readers, self.by_encoder(vector), strict=True):
                teach(getattr(changed, tokenizer), getattr(changed, encoder), word, row.to(self.device))
        return changed.frozen()

    def by_encoder(self, vector: Tensor) -> tuple[Tensor, ...]:
        """A vector `(D,)` of the table as the rows of each text encoder's own.

        Raises:
            ValueError: it has another length.
        """
        widths = [table.shape[1] for table in self.tables]
        if vector.shape != (sum(widths),):
            raise ValueError(
                f"expected a word vector of shape ({sum(widths)},), got {tuple(vector.shape)}: "
                "was it learned on another model?"
            )
        return vector.split(widths)


def tokenize(tokenizer: "CLIPTokenizer", texts: Sequence[str]) -> Tensor:
    """Token numbers `(B, L)` of texts, cut and padded to what the model reads."""
    length = tokenizer.model_max_length
    found: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return found


def read(encoder: "CLIPTextModel", words: Tensor, ids: Tensor | None = None, **options: Any) -> Any:
    """What a text encoder answers to word vectors `(B, L, D)`; of `ids` `(B, L)` it sees where the text ends."""
    handle = encoder.get_input_embeddings().register_forward_hook(lambda *_: words)
    try:
        nothing = torch.zeros(words.shape[:2], dtype=torch.long, device=words.device)
        return encoder(nothing if ids is None else ids, **options)
    finally:
        handle.remove()


@torch.no_grad()
def teach(tokenizer: "CLIPTokenizer", encoder: "CLIPTextModel", word: str, vector: Tensor) -> None:
    """Add a word with its vector `(D,)`.

    Raises:
        ValueError: the tokenizer knows it already.
    """
    known = len(tokenizer)
    tokenizer.add_tokens(word)
    if len(tokenizer) == known:  # add_tokens answers 1 for a word of the vocabulary, too
        raise ValueError(f"expected a word that the tokenizer lacks, got {word!r}: choose another.")
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(word)] = vector


def apply(delta: Delta, parts: dict[str, nn.Module]) -> None:
    """Add a delta to the weights of `parts`, strictly."""
    for name, difference in delta.dense.items():
        add(parts, name, difference)
    for name, (down, up) in delta.low_rank.items():
        weight = find(parts, f"{name}.weight")
        product = up.flatten(1) @ down.flatten(1)
        add(parts, f"{name}.weight", product.reshape(weight.shape) if product.numel() == weight.numel() else product)


def add(parts: dict[str, nn.Module], name: str, difference: Tensor) -> None:
    """weight += difference, if the weight exists and has that shape."""
    weight = find(parts, name)
    if weight.shape != difference.shape:
        raise ValueError(
            f"expected a delta of shape {tuple(weight.shape)} for {name!r}, got {tuple(difference.shape)}: "
            "was it made for another model?"
        )
    with torch.no_grad():
        weight.add_(difference.to(weight))


def find(parts: dict[str, nn.Module], name: str) -> Tensor:
    """The parameter called `<part>.<name in part>`."""
    part, _, inner = name.partition(".")
    try:
        return parts[part].get_parameter(inner)
    except (KeyError, AttributeError) as error:
        raise ValueError(
            f"expected a parameter of {', '.join(parts)}, got {name!r}, which this model lacks: "
            "was the delta made for another model?"
        ) from error


def difference(after: Model, before: Model, *, part: str = "unet", names: set[str] | None = None) -> Delta:
    """The dense delta from `before` to `after` over the named parameters of one part (None: all that moved)."""
    old = dict(before.parts[part].named_parameters())
    new = dict(after.parts[part].named_parameters())
    chosen = sorted(names) if names is not None else [n for n in new if not torch.equal(new[n], old[n])]
    return Delta(dense={f"{part}.{n}": (new[n] - old[n]).detach().float().cpu() for n in chosen})


def normal(shape: Sequence[int], rng: Generator, *, like: Tensor) -> Tensor:
    """Standard normal numbers drawn on the CPU, on the device and of the type of `like`."""
    return torch.randn(tuple(shape), generator=rng).to(like)


def denoising_loss(model: Model, z_0: Tensor, text: Tensor, *, rng: Generator) -> Tensor:
    """L_DM on latents `(B, C, h, w)` and text `(B, L, D)`: one t and eps for each sample, mean-reduced."""
    steps = int(model.scheduler.config.num_train_timesteps)
    t = torch.randint(steps, (len(z_0),), generator=rng)
    eps = normal(z_0.shape, rng, like=z_0)
    z_t = model.add_noise(z_0, eps, t)
    return F.mse_loss(model.predict_noise(z_t, t.to(z_0.device), text), eps)


def guided_noise(model: Model, z_t: Tensor, t: Tensor, text: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): eps_null + scale (eps_c - eps_null)."""
    if scale == 1.0:
        return model.predict_noise(z_t, t, text)
    both = model.predict_noise(torch.cat([z_t, z_t]), t, torch.cat([null, text]))
    eps_null, eps_c = both.chunk(2)
    return eps_null + scale * (eps_c - eps_null)


def ddim(model: Model, steps: int) -> "DDIMScheduler":
    """DDIM on the model's own schedule, set to `steps` steps, with the settings Stable Diffusion ships."""
    from diffusers import DDIMScheduler

    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "trained_betas")
    kept = {k: model.scheduler.config[k] for k in names}
    scheduler = DDIMScheduler(
        **kept, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon"
    )
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def sample(
    model: Model,
    z_T: Tensor,
    text: Tensor,
    null: Tensor,
    *,
    steps: int,
    guidance: float,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """DDIM from `z_T` `(B, C, h, w)`: the `steps` from `start` up to, not including, `stop`. Deterministic (eta 0)."""
    scheduler = ddim(model, steps)
    z = z_T
    for t in scheduler.timesteps[start:stop]:
        z = scheduler.step(guided_noise(model, z, t, text, null, guidance), t, z).prev_sample
    return z


def batches(n: int, size: int, *, rng: Generator) -> Iterator[Tensor]:
    """Endless index batches `(size,)` over n examples: each epoch in a fresh order, examples wrap between epochs."""
    order = chain.from_iterable(torch.randperm(n, generator=rng).tolist() for _ in iter(int, 1))
    while True:
        yield torch.tensor([next(order) for _ in range(size)])
