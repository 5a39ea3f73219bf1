"""Texts as token numbers and word vectors: what is asked of tokenizers and text encoders, whatever the family."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:  # it takes seconds to import, and planning needs none of it
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Rows of a text that one encoder fills, one for each of its tokens.

    Attributes:
        start: the first of these rows.
        ids: token numbers `(B, n)`, from the first row on.
        ends: where each text ends `(B,)`: the place of its first end token among the n.
    """

    start: int
    ids: Tensor
    ends: Tensor


def tokenize(tokenizer: "CLIPTokenizer", texts: Sequence[str], length: int | None = None) -> Tensor:
    """Token numbers `(B, L)` of texts, cut and padded to a length, by default to what the tokenizer says."""
    length = length or tokenizer.model_max_length
    found: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return found


def span(ids: Sequence[int], empty: Sequence[int]) -> list[int]:
    """The places in a text's token numbers that the empty text's do not have before or behind."""
    ahead = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, empty, strict=False)))
    pairs = zip(reversed(ids), reversed(empty[ahead:]), strict=False)
    behind = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return list(range(ahead, len(ids) - behind))


def stretch(ids: Tensor, end: int, start: int = 0) -> Stretch:
    """Rows from `start` on, of token numbers `(B, n)`; a text that was cut ends at its last row."""
    ended = torch.cat([ids[:, :-1] == end, torch.ones_like(ids[:, -1:], dtype=torch.bool)], dim=1)
    return Stretch(start=start, ids=ids, ends=ended.int().argmax(-1))


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
