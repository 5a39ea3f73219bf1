"""What every method shares: a latent model that draws from text, its native prediction, its loss, its sampler.

    z_t      = noised(z_0, eps, t)             what the forward process makes of an image and noise
    L_DM     = E w(t) || f_theta(z_t, t, c) - target(z_0, eps, t) ||^2
    guided   = f(z_t, null) + w (f(z_t, c) - f(z_t, null))

f is what the family natively predicts, and what every loss compares: the noise (Stable Diffusion 1, 2 and XL, see
`benchmark.model.unet`), or the velocity of a rectified flow (SD 3, FLUX, see `benchmark.model.flow`). No method asks
which: velocities rewritten as noise would make every loss vanish where the composition is decided.

A leaf beside `types`, over `tokens` and `deltas`; families of models derive from `Model`.
A text is one tensor `(B, L, D)` whatever the family: methods stack, index and expand it, and never look inside.
A time t is whatever the family counts in: a method draws it (`times`), and hands it on.
Random numbers are drawn on the CPU from the generator given, then moved, so that every device sees the same ones.
Counted passes are samples through the denoiser, whatever the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.deltas import apply, copied
from benchmark.solvers import Walk
from benchmark.tokens import Stretch, read, span, stretch, teach, tokenize
from benchmark.types import Delta, Precision, Solver

if TYPE_CHECKING:  # these take seconds to import, and planning needs none of them
    from diffusers import AutoencoderKL, PNDMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

Scope = Literal["x", "x-strict", "u", "u-old", "selfattn", "full"]  # which parameters a defense trains
Course = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""z_t `(B, C, h, w)`, its time `()` or `(B,)`, and the share of the trajectory behind it -> z_t, which may be another,
and the prediction of the step from there. Made for one trajectory: it may remember what it has seen."""
HALF: Mapping[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Meter:
    """Counts the samples that pass through the denoiser, forward and backward."""

    unet_forward: int = 0
    unet_backward: int = 0

    def count(self, predicted: Tensor) -> None:
        """Count one prediction, and its backward pass if there is one."""
        self.unet_forward += len(predicted)
        if predicted.requires_grad:
            self.watch(predicted)

    def watch(self, inner: Tensor) -> None:
        """Count the backward pass through `inner` `(B, ...)`: of a loss that the prediction itself is no part of."""
        samples = len(inner)
        inner.register_hook(lambda _: self._backward(samples))

    def _backward(self, samples: int) -> None:
        self.unet_backward += samples


@dataclass(frozen=True, kw_only=True)
class TextLayer:
    """A linear map of the denoiser that reads the text: W of `W c + b`.

    Attributes:
        name: its module in the denoiser; the weight is `name.weight` `(out, D)`.
        reads: which rows of a text it sees, see `Model.text_rows`.
        makes: keys or values of an attention, or a projection from which both are made.
    """

    name: str
    reads: Literal["words", "pooled"]
    makes: Literal["keys", "values", "both"]


def open_gate(texts: Sequence[str]) -> None:
    """Let every text pass: the gate of a model that no run has in hand."""


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A latent model: the parts that methods read or train, and how it noises, predicts and draws.

    Weights that are trained are float32, always; so are all others, but for a flow transformer and language models in a
    run of bfloat16. With `precision` bfloat16 the denoiser computes in mixed precision; what it predicts, the losses
    and the updates stay float32. float16 does so only where no gradient is asked for: without scaling of
    the loss, small gradients would vanish in it.

    Every text passes `gate` before it is tokenized, which raises for what may not be read: see `benchmark.data.safety`.

    Class data:
        part: the denoiser's field, and the prefix of its names in a delta.
        is_large: the base and what is worn on it share the memory of what does not differ.
    """

    part: ClassVar[str]
    is_large: ClassVar[bool] = False

    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel"
    tokenizer: "CLIPTokenizer"
    scheduler: Any
    meter: Meter = field(default_factory=Meter)
    precision: Precision = "float32"
    solver: Solver = "ddim"
    gate: Callable[[Sequence[str]], None] = open_gate

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts: what most methods train."""
        found: nn.Module = getattr(self, self.part)
        return found

    @property
    def readers(self) -> tuple[tuple[str, str], ...]:
        """The fields of each CLIP tokenizer and of the encoder that reads it: words can be searched for in them."""
        return (("tokenizer", "text_encoder"),)

    @property
    def listeners(self) -> tuple[tuple[str, str], ...]:
        """The same of encoders that read the spelled text alone: T5 and language models."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where the denoiser is, and everything with it."""
        return next(self.denoiser.parameters()).device

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of a latent at the model's native size."""

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int]:
        """`(L, D)` of a text that `predict` reads."""

    @abstractmethod
    def times(self, n: int, *, rng: Generator) -> Tensor:
        """Training times `(n,)`, as this family's training draws them; on the CPU."""

    @abstractmethod
    def noised(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t of z_0 and eps `(B, C, h, w)` at t `(B,)`."""

    @abstractmethod
    def target(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What `predict` is trained to answer, `(B, C, h, w)`."""

    @abstractmethod
    def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """f_theta(z_t, t, c): `(B, C, h, w)`; t is `(B,)` or `()`."""

    @abstractmethod
    def to_clean(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The z_0 that a prediction means."""

    @abstractmethod
    def to_noise(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The eps that a prediction means."""

    @abstractmethod
    def trajectory(self, steps: int) -> Tensor:
        """The times of a sampling run `(steps + 1,)`: from noise, to the image."""

    @abstractmethod
    def step(self, z: Tensor, predicted: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """One step of the deterministic sampler, from time t `()` to t_next `()`."""

    @abstractmethod
    def scope(self, name: Scope) -> set[str]:
        """The parameters of the denoiser that a scope trains, by name.

        Raises:
            ValueError: there is none.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The denoiser's blocks, in order; each answers with `(B, C, h, w)` or `(B, N, C)`, or with a tuple."""

    @abstractmethod
    def between(self, k: int, parts: int, *, rng: Generator) -> Tensor:
        """A random time `()` in part k of `parts` equal parts of the times, counted from the image."""

    def pndm(self, steps: int) -> "PNDMScheduler":
        """PNDM on the model's own schedule.

        Raises:
            ValueError: it has no noise schedule.
        """
        raise ValueError(f"expected a noise schedule for PNDM, got {type(self).__name__}: choose another sampler.")

    def walk(self, steps: int, start: int = 0) -> Walk:
        """A trajectory by the model's solver, from step `start`: DDIM here, or what takes its place in the family.

        Raises:
            ValueError: another solver needs a noise schedule, and this family has none.
        """
        if self.solver != "ddim":
            raise ValueError(f"expected a noise schedule for {self.solver}, got {type(self).__name__}: take `ddim`.")
        return Stepped(self, self.trajectory(steps), start)

    def features(self, answer: Any) -> Tensor:
        """The features of the image, `(B, C, h, w)` or `(B, N, C)`, in what one of `layers` answered."""
        found: Tensor = answer if isinstance(answer, Tensor) else answer[0]
        return found

    @abstractmethod
    def text_layers(self) -> list[TextLayer]:
        """The linear maps through which the text enters the denoiser, in order; nothing else of it sees the text.

        Raises:
            ValueError: there is none.
        """

    def text_rows(self, text: Tensor, reads: Literal["words", "pooled"]) -> Tensor:
        """What layers that read so see of a text `(B, L, D)`: `(B, N, D')`; one row if it is the pooled vector.

        Raises:
            ValueError: this family's layers do not read so.
        """
        if reads != "words":
            raise ValueError(f"expected rows of words, got {reads!r}: no layer of {type(self).__name__} reads so.")
        return text

    def with_text_rows(self, text: Tensor, rows: Tensor, reads: Literal["words", "pooled"]) -> Tensor:
        """A text `(B, L, D)` in which the rows that `rows` gives are these `(B, N, D')`."""
        self.text_rows(text, reads)
        return rows

    def stretches(self, texts: Sequence[str]) -> tuple[Stretch, ...]:
        """Which tokens stand behind the rows of words of texts, one stretch for each encoder."""
        return (stretch(self.ids(texts), int(self.tokenizer.eos_token_id)),)

    def attending(self) -> AbstractContextManager[list[Tensor]]:
        """While it is open, each prediction appends to the list: what the image pays to each row of the text.

        One `(B, heads, N, L)` for each attention to the text, in order; they sum to 1 over L and keep gradients.

        Raises:
            ValueError: this family has no attention to the text alone.
        """
        raise ValueError(f"expected attention to the text alone, got {type(self).__name__}: there it is joint.")

    def targets(self, names: Sequence[str]) -> list[str]:
        """The endings of layers' names that names of layers mean here: `to_q` also means its like on the text side."""
        return list(names)

    @abstractmethod
    def middles(self, parts: int, size: int, *, rng: Generator) -> Tensor:
        """Random times `(size,)`, each in the middle of one of `parts` equal parts of the schedule."""

    def weight(self, t: Tensor) -> Tensor:
        """w(t) `(B,)` of the training loss."""
        return torch.ones(t.shape)

    def guided(self, z_t: Tensor, t: Tensor, text: Tensor, null: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022): f_null + scale (f_c - f_null), in one batch."""
        if self.guided_passes(scale) == 1:
            return self.predict(z_t, t, text)
        both = self.predict(torch.cat([z_t, z_t]), torch.cat([t, t]) if t.ndim else t, torch.cat([null, text]))
        of_null, of_c = both.chunk(2)
        return of_null + scale * (of_c - of_null)

    def course(self, text: Tensor, null: Tensor, scale: float) -> Course:
        """What is predicted along one trajectory: `guided` at each of its times."""
        return lambda z_t, t, done: (z_t, self.guided(z_t, t, text, null, scale))

    def guided_passes(self, scale: float) -> int:
        """Samples through the denoiser for one guided prediction."""
        return 1 if scale == 1.0 else 2

    def mixed(self) -> AbstractContextManager[Any]:
        """Where the denoiser computes in mixed precision, if it is to."""
        half = HALF.get(self.precision)
        on = half is not None and not (half == torch.float16 and torch.is_grad_enabled())
        return torch.autocast(self.device.type, half or torch.bfloat16, enabled=on)

    def to_latent(self, z: Tensor) -> Tensor:
        """What the denoiser sees of the VAE's own latents."""
        return z * self.vae.config.scaling_factor

    def from_latent(self, z: Tensor) -> Tensor:
        """What the VAE sees of the denoiser's latents."""
        return z / self.vae.config.scaling_factor

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules that a delta can change, by the prefix of its names."""
        encoders = {name: getattr(self, name) for _, name in self.readers}
        return {self.part: self.denoiser, "vae": self.vae, **encoders}

    @property
    def components(self) -> dict[str, Any]:
        """What a pipeline of diffusers is made of: the modules and the tokenizers, by its names for them."""
        return {**self.modules, **{name: getattr(self, name) for name, _ in (*self.readers, *self.listeners)}}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts, and what listens: all that has weights."""
        return {**self.parts, **{name: getattr(self, name) for _, name in self.listeners}}

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

    def heard(self, texts: Sequence[str], length: int) -> Tensor:
        """What the first of `listeners` answers to texts, `(B, length, J)`: it reads so many tokens of each."""
        self.gate(texts)
        tokenizer, encoder = (getattr(self, name) for name in self.listeners[0])
        found: Tensor = encoder(tokenize(tokenizer, texts, length).to(self.device))[0]
        return found.float()

    def rows_of(self, phrase: str) -> list[int]:
        """The rows of the encoding of a phrase alone, `(L, D)`, that hold its words."""
        found = []
        for one in self.stretches([phrase, ""]):
            said, empty = (ids[: end + 1] for ids, end in zip(one.ids.tolist(), one.ends.tolist(), strict=True))
            found += [one.start + row for row in span(said, empty)]
        return found

    def joint(self, keys: int) -> tuple[slice, int]:
        """Of an attention over so many tokens of text and image: where the image is, and where the text begins.

        Raises:
            ValueError: no such attention is in this family.
        """
        raise ValueError(f"expected a transformer in which text and image attend together, got {type(self).__name__}.")

    def words(self, ids: Tensor) -> Tensor:
        """Rows of the token table, before positions are added: `(B, L, D)` of ids `(B, L)`."""
        return self.text_encoder.get_input_embeddings()(ids)

    def encode_words(self, words: Tensor) -> Tensor:
        """The encoding `(B, L, D)` of a text given as word vectors `(B, L, D)`: gradients reach the words."""
        return read(self.text_encoder, words)[0]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The encoding of texts, `(B, L, D)`: here the last hidden states of the text encoder."""
        return self.text_encoder(self.ids(texts))[0]

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents `(B, C, h, w)` of images in [0, 1]."""
        found = self.vae.encode((images * 2 - 1).to(self.device, self.vae.dtype)).latent_dist
        return self.to_latent(found.mean), self.spread(found.std)

    def spread(self, deviation: Tensor) -> Tensor:
        """What the denoiser sees of a deviation of the VAE's own latents."""
        return deviation * self.vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] of latents."""
        x_pm1 = self.vae.decode(self.from_latent(z)).sample
        return (x_pm1 / 2 + 0.5).clamp(0, 1)

    def clone(self, *, only: Collection[str] | None = None) -> "Model":
        """A copy whose weights can be trained without touching this one; the meter is shared.

        Args:
            only: what will change: parameters as a delta names them, or whole parts. All else is the same memory as
                here, and may not be written to. None: everything is copied.
        """
        copies: dict[str, Any] = copied(self.parts, only)
        return replace(self, **copies)

    def frozen(self) -> "Model":
        """This model, in evaluation mode and without gradients."""
        for part in self.modules.values():
            part.eval().requires_grad_(False)
        return self

    def with_delta(self, *deltas: Delta) -> "Model":
        """A copy with `deltas` applied in order.

        Raises:
            ValueError: a tensor that this model lacks, or of another shape.
        """
        changed = self.clone(only=set[str]().union(*(delta.names for delta in deltas)))
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


def difference(after: Model, before: Model, *, part: str = "", names: set[str] | None = None) -> Delta:
    """The dense delta over the named parameters (None: all that moved) of one part, by default the denoiser."""
    part = part or after.part
    old = dict(before.parts[part].named_parameters())
    new = dict(after.parts[part].named_parameters())
    chosen = sorted(names) if names is not None else [n for n in new if not torch.equal(new[n], old[n])]
    return Delta(dense={f"{part}.{n}": (new[n] - old[n]).detach().float().cpu() for n in chosen})


def normal(shape: Sequence[int], rng: Generator, *, like: Tensor) -> Tensor:
    """Standard normal numbers drawn on the CPU, on the device and of the type of `like`."""
    return torch.randn(tuple(shape), generator=rng).to(like)


def errors(model: Model, z_0: Tensor, eps: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """|| f_theta(z_t, t, c) - target ||^2 at each element, `(B, C, h, w)`; t `(B,)` is on the CPU."""
    predicted = model.predict(model.noised(z_0, eps, t), t.to(z_0.device), text)
    return F.mse_loss(predicted, model.target(z_0, eps, t), reduction="none")


def denoising_loss(model: Model, z_0: Tensor, text: Tensor, *, rng: Generator) -> Tensor:
    """L_DM on latents `(B, C, h, w)` and text `(B, L, D)`: one t and eps for each sample, mean-reduced."""
    t = model.times(len(z_0), rng=rng)
    eps = normal(z_0.shape, rng, like=z_0)
    z_t, w = model.noised(z_0, eps, t), model.weight(t)
    predicted, wanted = model.predict(z_t, t.to(z_0.device), text), model.target(z_0, eps, t)
    if (w == 1).all():
        return F.mse_loss(predicted, wanted)
    return (w.to(z_0) * F.mse_loss(predicted, wanted, reduction="none").flatten(1).mean(1)).mean()


class Stepped:
    """A walk by a model's own `step` over its times `(S + 1,)`, from step `start`."""

    def __init__(self, model: Model, times: Tensor, start: int) -> None:
        self.model, self.all, self.at = model, times, start

    def begin(self, z: Tensor) -> Tensor:
        """As it is."""
        return z

    def times(self, i: int) -> tuple[Tensor, ...]:
        """The step's own time."""
        return (self.all[i],)

    def step(self, z: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """To the next time."""
        self.at += 1
        return self.model.step(z, predicted, t, self.all[self.at])


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
    """From `z_T` `(B, C, h, w)`: the `steps` from `start` up to, not including, `stop`. Deterministic."""
    walk = model.walk(steps, start)
    z = walk.begin(z_T)
    course = model.course(text, null, guidance)
    for i in range(steps)[start:stop]:
        for t in walk.times(i):
            z, predicted = course(z, t, torch.tensor(i / steps))
            z = walk.step(z, predicted, t)
    return z


def batches(n: int, size: int, *, rng: Generator) -> Iterator[Tensor]:
    """Endless index batches `(size,)` over n examples: each epoch in a fresh order, examples wrap between epochs."""
    order = chain.from_iterable(torch.randperm(n, generator=rng).tolist() for _ in iter(int, 1))
    while True:
        yield torch.tensor([next(order) for _ in range(size)])
