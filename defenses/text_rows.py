"""Which rows of a text the closed-form defenses read: a row is what the denoiser sees of one token.

c and g are rows of a text that names the concept and of its guide, one for one: `(n, D)` each, float64.
The last word of a text stands before its first end token; a text without words has the begin token there. An encoder
that reads no begin token (T5) has the end token itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmark.diffusion import Model
from benchmark.types import Concept, Split
from defenses.closed_form import Change, Reads, solve

Wording = Literal["phrase", "wordings", "defender"]  # what is erased beside the phrase: nothing, the card's, prompts
Keep = Literal["none", "empty", "prior"]  # whose rows stay: nobody's, the empty text's, with it the split prior's
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Span:
    """A stretch of one text's rows: its first, how many there are, and which of them is the first end token."""

    start: int
    length: int
    end: int

    @property
    def last(self) -> int:
        """The row of the last word."""
        return self.start + max(0, self.end - 1)


Rule = Callable[[Tensor, Tensor, list[Span], list[Span]], Pair]


def guide_of(concept: Concept, guide: str | None) -> str:
    """The text that the concept is to mean: UCE's and RECE's, where none is given."""
    return ("art" if concept.kind == "style" else "") if guide is None else guide


def wanted(concept: Concept, erase: Wording) -> tuple[str, ...]:
    """The texts that a defender erases: the phrases, and with them the card's wordings or the defender's prompts."""
    if erase == "defender":
        return (*concept.phrases, *(p.text for p in concept.of("defender")))
    return (*concept.phrases, *(concept.wordings if erase == "wordings" else ()))


def prompts_read(erase: Wording, keep: Keep) -> tuple[Split, ...]:
    """The splits of which `wanted` and `kept_texts` read the prompts."""
    found: tuple[Split, ...] = ("defender",) if erase == "defender" else ()
    return (*found, "prior") if keep == "prior" else found


def kept_texts(concept: Concept, keep: Keep) -> tuple[str, ...]:
    """The texts that a defender keeps."""
    more = tuple(prompt.text for prompt in concept.of("prior")) if keep == "prior" else ()
    return () if keep == "none" else ("", *more)


def said(text: str) -> str:
    """A text as it is encoded: SDXL answers the empty one with zeros, a blank has the same tokens and does not."""
    return text or " "


@torch.no_grad()
def encoded(model: Model, texts: Iterable[str], reads: Reads) -> Tensor:
    """What such layers see of texts: `(B, N, D)`, float64."""
    asked = [said(text) for text in texts]
    parts = [model.encode_text(asked[start : start + 32]) for start in range(0, len(asked), 32)]
    return model.text_rows(torch.cat(parts), reads).double()


def spans(model: Model, texts: list[str]) -> list[list[Span]]:
    """Of each text the stretches of its rows, one for each encoder."""
    found = model.stretches(texts)
    return [[Span(one.start, one.ids.shape[1], int(one.ends[i])) for one in found] for i in range(len(texts))]


def last_words(c: Tensor, g: Tensor, of_c: list[Span], of_g: list[Span]) -> Pair:
    """The row of the last word of each, for each stretch; of no word, the first row. Two `(k, D)` of two `(N, D)`."""
    return torch.stack([c[one.last] for one in of_c]), torch.stack([g[one.last] for one in of_g])


def from_last_words(c: Tensor, g: Tensor, of_c: list[Span], of_g: list[Span]) -> Pair:
    """The rows from the last word of each to the end, the padding included, as many as both have. Two `(n, D)`."""
    left, right = [], []
    for a, b in zip(of_c, of_g, strict=True):
        n = a.length - max(a.last - a.start, b.last - b.start)
        left.append(c[a.last : a.last + n])
        right.append(g[b.last : b.last + n])
    return torch.cat(left), torch.cat(right)


def all_rows(c: Tensor, g: Tensor, of_c: list[Span], of_g: list[Span]) -> Pair:
    """All rows of both, in place. Two `(N, D)`."""
    return c, g


def paired(model: Model, pairs: Iterable[tuple[str, str]], reads: Reads, rule: Rule) -> Pair:
    """The rows c and g of pairs of texts, by a rule from above: two of `(n, D)`. A pooled vector is one row."""
    named = [(said(text), said(guide)) for text, guide in pairs]
    texts = list(dict.fromkeys(text for pair in named for text in pair))
    rows = dict(zip(texts, encoded(model, texts, reads), strict=True))
    places = dict(zip(texts, spans(model, texts), strict=True))
    rule = rule if reads == "words" else all_rows
    c, g = zip(*(rule(rows[a], rows[b], places[a], places[b]) for a, b in named), strict=True)
    return torch.cat(c), torch.cat(g)


def stacked(model: Model, texts: Iterable[str], reads: Reads) -> Tensor:
    """All rows of texts, `(m, D)`; none of no text."""
    given = list(texts)
    return encoded(model, given or (" ",), reads).flatten(0, 1)[: None if given else 0]


def uce(model: Model, pairs: Iterable[tuple[str, str]], reads: Reads, p: Tensor, texts: Iterable[str]) -> Change:
    """UCE as the paper's code has it (Gandikota et al., WACV 2024), from which RECE starts; p: rows of `texts`."""
    c, g = paired(model, pairs, reads, from_last_words)
    return solve(c, g, p, lam=0.5, s_e=1.0, s_p=scale_of(texts))


def scale_of(texts: Iterable[str]) -> float:
    """s_p of the paper's code of UCE, for so many kept texts."""
    return max(0.1, 1 / max(1, len(list(texts))))
