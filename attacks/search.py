"""What the prompt searches share: words that survive typing, prompts with open slots, gradients at words.

    begin  slot_1 ... slot_K  words of the prompt  end  end ...

A found prompt is scored as a text, so a search may use only tokens whose spelling is encoded to that one token again.
Those are whole words, and joined by spaces they stay what they are. Rows count such words; the tokenizer's own numbers
are their `ids`. Slots are at positions 1 to K, and tokenizing the spelled prompt gives the searched one, cut where it
would be cut anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model

Item = TypeVar("Item")
TOGETHER = 4  # samples with a gradient at once


@dataclass(frozen=True)
class Vocabulary:
    """V words that a prompt can be made of: their token numbers `(V,)`, spellings and vectors `(V, D)`."""

    ids: Tensor
    words: tuple[str, ...]
    vectors: Tensor

    def spell(self, rows: Tensor) -> tuple[str, ...]:
        """The texts of rows `(B, K)`."""
        return tuple(" ".join(self.words[row] for row in text) for text in rows.tolist())

    def draw(self, shape: Sequence[int], rng: Generator) -> Tensor:
        """Random rows, each word as likely as another."""
        return torch.randint(len(self.words), tuple(shape), generator=rng).to(self.ids.device)

    def nearest(self, vectors: Tensor) -> Tensor:
        """The row of the word with the largest cosine to each vector: `(B, K)` of `(B, K, D)`."""
        return (F.normalize(vectors, dim=-1) @ F.normalize(self.vectors, dim=-1).T).argmax(-1)


@torch.no_grad()
def vocabulary(model: Model, *, without: str = "") -> Vocabulary:
    """The words of a model's tokenizer, less those that give `without` away.

    Left out are the tokens of that phrase and every word that contains one of its words of three letters or more.

    Raises:
        ValueError: no word is left.
    """
    special = set(model.tokenizer.all_special_ids)
    spelled = [text.strip() for text in model.tokenizer.batch_decode([[i] for i in range(len(model.tokenizer))])]
    encoded = model.tokenizer(spelled, add_special_tokens=False).input_ids
    avoided = set(model.tokenizer(without, add_special_tokens=False).input_ids)
    telling = [word for word in without.lower().split() if len(word) > 2]
    kept = [
        i
        for i, (text, ids) in enumerate(zip(spelled, encoded, strict=True))
        if ids == [i]
        and i not in special | avoided
        and text.isprintable()  # byte-level vocabularies hold control characters, which survive but nobody types
        and not any(word in text for word in telling)
    ]
    if not kept:
        raise ValueError("expected a tokenizer with words to search, got none: check the tokenizer.")
    ids = torch.tensor(kept, device=model.device)
    return Vocabulary(ids, tuple(spelled[i] for i in kept), model.words(ids).detach())


def room(model: Model, wanted: int) -> int:
    """How many slots fit: `wanted`, but at most what the text encoder reads between begin and end.

    Raises:
        ValueError: not one.
    """
    slots = min(wanted, int(model.tokenizer.model_max_length) - 2)
    if slots < 1:
        raise ValueError(f"expected at least 1 token to search, got {slots}: raise tokens ({wanted}).")
    return slots


def frame(model: Model, words: Vocabulary, slots: int, texts: Sequence[str]) -> Tensor:
    """Token numbers `(B, L)` of `texts` behind open slots; the empty text is a prompt of slots alone."""
    filler = " ".join([words.words[0]] * slots)
    return model.ids([f"{filler} {text}".strip() for text in texts])


def encode(model: Model, frames: Tensor, vectors: Tensor) -> Tensor:
    """Last hidden states `(B, L, D)` of frames `(B, L)` with word vectors `(B, K, D)` in the slots."""
    around = model.words(frames)
    return model.encode_words(torch.cat([around[:, :1], vectors, around[:, 1 + vectors.shape[1] :]], dim=1))


def sentence(model: Model, frames: Tensor, vectors: Tensor) -> Tensor:
    """The hidden state at the end of a prompt of slots alone: `(B, D)`. What comes after the end cannot change it."""
    slots = vectors.shape[1]
    return encode(model, frames[:, : slots + 2].expand(len(vectors), -1), vectors)[:, slots + 1]


@torch.no_grad()
def meaning(model: Model, texts: Sequence[str]) -> Tensor:
    """The hidden state at the end of each text: `(B, D)`."""
    ends = (model.ids(texts) == model.tokenizer.eos_token_id).int().argmax(-1)
    return model.encode_text(texts)[torch.arange(len(ends)), ends]


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the different items, evenly spaced, or all if they are fewer.

    Raises:
        ValueError: there are none.
    """
    different = list(dict.fromkeys(items))
    n = len(different)
    if not n or count < 1:
        raise ValueError(f"expected prompts to attack, got {min(n, count)}: add prompts to the concept card.")
    return different if count >= n else [different[(2 * i + 1) * n // (2 * count)] for i in range(count)]


def denoising(model: Model, z_0: Tensor, eps: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """|| f_theta(z_t, t, c) - target ||^2 for each sample, averaged over its elements: `(B,)`."""
    predicted = model.predict(model.noised(z_0, eps, t), t.to(z_0.device), text)
    return F.mse_loss(predicted, model.target(z_0, eps, t), reduction="none").flatten(1).mean(1)


def slopes(loss_of: Callable[[slice, Tensor], Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The loss `(K,)` and its gradient `(K, S, D)` at word vectors `(K, S, D)`, a few prompts at a time.

    `loss_of` gives the losses of some of the prompts for their vectors.
    """
    losses, gradients = list[Tensor](), list[Tensor]()
    for part in parts(len(vectors)):
        own = vectors[part].detach().requires_grad_()
        loss = loss_of(part, own)
        gradients += torch.autograd.grad(loss.sum(), own)
        losses.append(loss.detach())
    return torch.cat(losses), torch.cat(gradients)


def parts(count: int) -> list[slice]:
    """The numbers below `count`, as many at once as a gradient may hold samples."""
    return [slice(start, start + TOGETHER) for start in range(0, count, TOGETHER)]
