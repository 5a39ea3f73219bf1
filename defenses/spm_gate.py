"""SPM with its gate: facilitated transport (Lyu et al., CVPR 2024). Adapters that each prompt turns up or down.

The adapters are those of `spm`; they stay beside the model, and a prompt p says how strong they are while it is drawn:

    gamma(p) = factor max( cos(E(p), E(c)),  |tokens(p) & tokens(c)| / |tokens(c)| ),   the largest over all c
    W x     <- W x + (gamma U) (gamma D) x,                                             alpha / r in U

for the prompt's prediction, and for that of the empty text that it is guided from. gamma = 1, as of the phrase itself,
is the merged form.

Paper     https://arxiv.org/abs/2312.16145
Code      https://github.com/Con6924/SPM @ 3dd762e, infer_spm.py @ 7dcfd21
Differs   what `spm` says of the training. One SPM at a time, not a sum of several. Tokens that the empty text has, too,
          are none of c's or p's: begin, end and padding. Of words that are given as vectors, those are tokens of c that
          are equal to its rows of the table. Where a family's text has more rows than its words', the cosine is of all.
Symbols   E encodings `(L, D)`, flattened; c erased phrases; U, D adapters of rank 1.
Protects  against prompts that are like c, while the gate is there. Who draws on his own leaves file and gate out, and
          has the base; a prompt that shares no token with c passes with whatever its cosine leaves of the adapters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Course, Model
from benchmark.guard import Guard
from benchmark.types import Concept, Examples, Report
from defenses.base import ModuleDefense
from defenses.membranes import Membranes
from defenses.text_rows import wanted

Metric = Literal["clipcos_tokenuni", "clipcos", "tokenuni"]  # the release's names
DOWN, UP = ".down", ".up"


@dataclass(frozen=True, kw_only=True)
class Gate(Guard):
    """How strong the adapters are for a text: a row below those of the text, filled with gamma."""

    texts: tuple[str, ...]
    metric: Metric
    factor: float

    def fitted(self, modules: Mapping[str, Tensor]) -> "Gated":
        """The gate, with the adapters that it opens."""
        return Gated(texts=self.texts, metric=self.metric, factor=self.factor, modules=modules)

    def read(self, model: Model, texts: Sequence[str]) -> Tensor:
        """`(B, L + 1, D)`."""
        said, erased, empty = (model.stretches(list(t))[0].ids[..., None] for t in (texts, self.texts, [""]))
        return self.with_gamma(model, model.encode_text(texts), overlap(said, erased, empty))

    def read_words(self, model: Model, words: Tensor) -> Tensor:
        """`(B, L + 1, D)` of word vectors `(B, L, D')`; gradients go through the rows and the cosine."""
        erased, empty = (model.words(model.ids(list(t))).detach() for t in (self.texts, [""]))
        return self.with_gamma(model, model.encode_words(words), overlap(words.detach(), erased, empty))

    def with_gamma(self, model: Model, text: Tensor, shared: Tensor) -> Tensor:
        """Encodings `(B, L, D)` with gamma below, for the tokens that they share with c `(B,)`."""
        c = model.encode_text(list(self.texts)).detach()
        cosine = F.cosine_similarity(text.flatten(1)[:, None], c.flatten(1)[None], dim=-1).amax(1)
        found = {"clipcos": cosine, "tokenuni": shared.to(text)}.get(
            self.metric, torch.maximum(cosine, shared.to(text))
        )
        gamma = self.factor * found
        return torch.cat([text, gamma[:, None, None].expand(-1, 1, text.shape[2])], dim=1)


@dataclass(frozen=True, kw_only=True)
class Gated(Gate):
    """A gate with its adapters, `D (r, in)` and `U (out, r)` of each layer by its name in a delta."""

    modules: Mapping[str, Tensor]

    def course(self, model: Model, text: Tensor, null: Tensor, scale: float) -> Course:
        """What the model predicts along one trajectory with gamma^2 U D beside its layers."""
        inner, gamma = model.course(text[:, :-1], null[:, :-1], scale), text[:, -1, 0]
        held = {name: tensor.to(text.device) for name, tensor in self.modules.items()}

        def predict(z_t: Tensor, t: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
            with beside(model, held, gamma):
                return inner(z_t, t, done)

        return predict


@dataclass(frozen=True, kw_only=True)
class SPMGate(Membranes, ModuleDefense):
    """Erase a phrase with adapters of rank 1 that prompts like it turn up. Defaults: the release's."""

    metric: Metric = "clipcos_tokenuni"
    factor: float = 1.0  # the release's facilitate_factor: 2 for artists

    version = 1
    several = True
    guarding = Gate
    presets = {"release": {}, "artists": {"factor": 2.0}, "all-anchors": {"anchors": "all"}}
    fidelity = "reimplemented"
    matched = "equations, settings and the gate read in the release; nothing was run beside it"

    def layers(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> dict[str, Tensor]:
        """Return the adapters.

        Raises:
            ValueError: this model has no block that attends, or the loss is not finite.
        """
        found = self.adapters(model, concept, rng, report)
        return {n + which: t for n, pair in found.items() for which, t in zip((DOWN, UP), pair, strict=True)}

    def guard(self, concept: Concept) -> Gate:
        """The gate, of all texts that are erased."""
        return Gate(texts=wanted(concept, self.erase), metric=self.metric, factor=self.factor)


def overlap(said: Tensor, erased: Tensor, empty: Tensor) -> Tensor:
    """Of each text the largest share of an erased one's tokens that it has `(B,)`; tokens are rows `(B, L, k)`."""
    shares = []
    for rows in erased:
        own = rows.unique(dim=0)
        own = own[~among(own, empty[0])]
        shares.append(
            torch.stack([among(own, text).double().mean() if len(own) else own.new_zeros(()) for text in said])
        )
    return torch.stack(shares).amax(0)


def among(rows: Tensor, others: Tensor) -> Tensor:
    """Which rows `(n, k)` are among others `(m, k)`."""
    return (rows[:, None] == others[None]).all(-1).any(1)


@contextmanager
def beside(model: Model, modules: Mapping[str, Tensor], gamma: Tensor) -> Iterator[None]:
    """While it lasts each layer also answers what its adapters do; of a batch that is twice gamma's, both halves."""

    def add(down: Tensor, up: Tensor, layer: nn.Module, args: Any, answer: Tensor) -> Tensor:
        said = adapted(layer, args[0], down, up)
        strength = gamma.square().repeat(len(said) // len(gamma)).reshape(-1, *[1] * (said.ndim - 1))
        return answer + (strength * said).to(answer.dtype)

    names = [name.removesuffix(DOWN) for name in modules if name.endswith(DOWN)]
    handles = []
    try:
        for name in names:
            layer = model.denoiser.get_submodule(name.removeprefix(f"{model.part}."))
            handles.append(layer.register_forward_hook(partial(add, modules[name + DOWN], modules[name + UP])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def adapted(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """U D x for a linear map or a convolution."""
    if isinstance(layer, nn.Conv2d):
        inner = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
        return F.conv2d(inner, up.reshape(*up.shape[:2], 1, 1))
    return F.linear(F.linear(x, down), up)
