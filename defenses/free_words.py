"""Word vectors that belong to no word, put into a text before it is encoded."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model, normal
from benchmark.tokens import span


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


def table_word(model: Model, rng: Generator) -> Tensor:
    """A random row of the token table `(1, 1, D)`."""
    return model.table[int(torch.randint(len(model.table), (), generator=rng))].detach().clone()[None, None]


def adversarial(model: Model, words: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """c* and c' `(1, L, D)`, encoded: [begin, prefix, words of c_e, ...] and [begin, c', end, ...].

    `words` `(2, L, D)` are those of c_e and of the empty prompt; the last of `free` `(1, k + 1, D)` is c'.
    """
    c_star, c_prime = model.encode_words(torch.cat([insert(words[:1], free[:, :-1]), insert(words[1:], free[:, -1:])]))
    return c_star[None], c_prime[None]


def insert(words: Tensor, vectors: Tensor) -> Tensor:
    """Words `(1, L, D)` with `vectors` `(1, k, D)` after the first; the last k are dropped."""
    return torch.cat([words[:, :1], vectors, words[:, 1:]], 1)[:, : words.shape[1]]


def own_ids(model: Model, text: str) -> list[int]:
    """Token numbers of a text alone, without begin, end and padding."""
    ids, empty = model.ids([text])[0].tolist(), model.ids([""])[0].tolist()
    return [ids[i] for i in span(ids, empty)]


def mean_word(model: Model, text: str) -> Tensor:
    """The mean vector `(D,)` of a text's words.

    Raises:
        ValueError: it has none.
    """
    ids = own_ids(model, text)
    if not ids:
        raise ValueError(f"expected a word to start from, got {text!r}: name one.")
    return model.words(torch.tensor([ids], device=model.device))[0].mean(0).detach()


def with_slot(model: Model, texts: Sequence[str], slot: str) -> list[tuple[Tensor, int]]:
    """Word vectors `(1, L, D)` of texts, and where in each a free vector takes the place of the slot.

    Raises:
        ValueError: no text has room for its slot.
    """
    empty, found = model.ids([""])[0].tolist(), []
    for text in texts:
        before, after = (own_ids(model, part) for part in text.split(slot, 1))
        ids = [empty[0], *before, empty[-1], *after, *empty[1:]][: len(empty)]
        if len(before) + 2 < len(empty):  # the begin token and the free vector; an end comes after them
            ids[-1] = empty[-1]
            found.append((model.words(torch.tensor([ids], device=model.device)).detach(), 1 + len(before)))
    if not found:
        raise ValueError(f"expected a text with room for {slot!r}, got {list(texts)}: shorten the texts.")
    return found


def put(words: Tensor, vector: Tensor, place: int) -> Tensor:
    """Words `(1, L, D)` with a vector `(D,)` at a place."""
    return torch.cat([words[:, :place], vector[None, None], words[:, place + 1 :]], dim=1)


@torch.no_grad()
def alone(model: Model, vector: Tensor) -> Tensor:
    """The encoding `(1, L, D)` of a text that is one free vector `(D,)`."""
    return model.encode_words(insert(model.words(model.ids([""])), vector.detach()[None, None]))
