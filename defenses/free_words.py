"""Word vectors that belong to no word, put into a text before it is encoded."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, normal


def with_room(model: Model, texts: Sequence[str], prefix: int) -> Tensor:
    """Word vectors `(B, L, D)` of texts that have room for `prefix` more.

    Raises:
        ValueError: a text has not.
    """
    ids = model.ids(texts)
    dropped = ids[:, max(0, ids.shape[1] - prefix) :]
    if bool((dropped != model.ids([""])[0, -1]).any()):
        raise ValueError(f"expected room for a prefix of {prefix}, got {list(texts)}: shorten the texts.")
    return model.words(ids)


def table_noise(model: Model, count: int, rng: Generator) -> Tensor:
    """Free vectors `(1, count, D)`: normal, with the deviation of the token table."""
    table = model.table.detach()
    return table.std() * normal((1, count, table.shape[1]), rng, like=table)


def adversarial(model: Model, words: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """c* and c' `(1, L, D)`, encoded: [begin, prefix, words of c_e, ...] and [begin, c', end, ...].

    `words` `(2, L, D)` are those of c_e and of the empty prompt; the last of `free` `(1, k + 1, D)` is c'.
    """
    c_star, c_prime = model.encode_words(torch.cat([insert(words[:1], free[:, :-1]), insert(words[1:], free[:, -1:])]))
    return c_star[None], c_prime[None]


def insert(words: Tensor, vectors: Tensor) -> Tensor:
    """Words `(1, L, D)` with `vectors` `(1, k, D)` after the first; the last k are dropped."""
    return torch.cat([words[:, :1], vectors, words[:, 1:]], 1)[:, : words.shape[1]]
