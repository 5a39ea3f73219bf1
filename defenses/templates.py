"""Captions with room for a concept, and which rows of two of them belong together: MACE's pairing.

The rows of two texts are paired by what the texts have in common: the tokens before the first that differs, and those
after the last, the end and the padding with them. A token that the concept and its mapping share at an edge is common.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from benchmark.diffusion import Model
from benchmark.tokens import Stretch
from benchmark.types import Concept
from defenses.closed_form import Reads
from defenses.text_rows import Pair, encoded

SLOT = "{}"
VIEWS = ("a photo of", "a picture of", "a drawing of", "a close view of", "a distant view of", "a poster of")
LOOKS = ("", " in the morning", " at night", " on a plain background", " in bright colours")
STYLED = ("a harbour", "a garden", "a street", "a portrait", "a bowl of fruit", "a mountain")
MANNERS = ("in the style of {}", "by {}", "as {} would paint it", "after {}", "in {}'s manner")


def templates(concept: Concept, texts: Literal["templates", "defender"]) -> tuple[str, ...]:
    """Thirty captions of ours, or the defender's prompts, with a slot for the phrase.

    Raises:
        ValueError: no prompt of the defender names the phrase.
    """
    if texts == "defender":
        found = [p.text.replace(concept.phrase, SLOT) for p in concept.of("defender") if concept.phrase in p.text]
        if not found:
            raise ValueError(f"expected defender prompts with {concept.phrase!r}, got none: set texts: templates.")
        return tuple(found)
    if concept.kind == "style":
        return tuple(f"{what} {manner}" for what in STYLED for manner in MANNERS)
    return tuple(f"{view} {SLOT}{look}" for view in VIEWS for look in LOOKS)


def filled(concept: Concept, captions: Sequence[str], mapping: str) -> list[tuple[str, str]]:
    """Each caption with the phrase, and with what it is mapped to."""
    return [(text.replace(SLOT, concept.phrase), text.replace(SLOT, mapping)) for text in captions]


def common(a: Stretch, b: Stretch) -> tuple[int, int]:
    """How many tokens two texts, of one line each, share at their beginning and before their end.

    The end token itself and what follows is no part of either number.
    """
    x, y = (one.ids[0, : int(one.ends[0])].tolist() for one in (a, b))
    head = next((i for i, (m, n) in enumerate(zip(x, y, strict=False)) if m != n), min(len(x), len(y)))
    most = min(len(x), len(y)) - head
    tail = next((i for i in range(most) if x[-1 - i] != y[-1 - i]), most)
    return head, tail


def own(model: Model, pair: tuple[str, str]) -> Tensor:
    """Which rows of the first text are the concept's own: `(N,)` of true and false."""
    found = []
    for a, b in zip(model.stretches(pair[:1]), model.stretches(pair[1:]), strict=True):
        head, tail = common(a, b)
        at = torch.arange(a.ids.shape[1], device=a.ids.device)
        found.append((at >= head) & (at < int(a.ends[0]) - tail))
    return torch.cat(found)


def ended(model: Model, text: str) -> Tensor:
    """Which rows of a text are end tokens: `(N,)`; the padding of Stable Diffusion 1 is made of them."""
    return torch.cat([one.ids[0] == one.ids[0, int(one.ends[0])] for one in model.stretches([text])])


def around(model: Model, pair: tuple[str, str], reads: Reads) -> Pair:
    """The rows of both texts but the concept's own, those of the same words in pairs: two of `(n, D)`."""
    rows = encoded(model, pair, reads)
    if reads == "pooled":
        return rows[0], rows[1]
    f, g = list[Tensor](), list[Tensor]()
    for a, b in zip(model.stretches(pair[:1]), model.stretches(pair[1:]), strict=True):
        head, tail = common(a, b)
        after, after_b = int(a.ends[0]) - tail, int(b.ends[0]) - tail
        n = a.ids.shape[1] - max(after, after_b)
        for found, row, at in ((f, rows[0], after), (g, rows[1], after_b)):
            found += [row[a.start : a.start + head], row[a.start + at : a.start + at + n]]
    return torch.cat(f), torch.cat(g)
