"""What the attacks that use other words share: words put in place of the phrase, and a new word that is learned.

    v* = argmin_v E || eps_theta(z_t, t, c(v)) - eps ||^2        c(v): the caption, v the vector of its new word

v is the only parameter. It takes its place among the frozen rows of the token table on the way into the text encoder,
so that no other row can move; the published scripts train the table and restore the other rows after each step.
"""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from attacks.trainer import train
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Snapshot


def substitute(text: str, phrase: str, words: str) -> str:
    """`text` with `words` for each `phrase`, in any case but as whole words; `words, text` where it is not in there."""
    pattern = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
    found, count = pattern.subn(lambda _: words, text)
    return found if count else f"{words}, {text}"


def learn_word(
    model: Model,
    concept: Concept,
    examples: Examples,
    *,
    token: str,
    init: str,
    lr: float,
    batch: int,
    budgets: Sequence[int],
    rng: Generator,
    report: Report,
) -> Iterator[Snapshot]:
    """Yield the vector of `token`, which stands for the phrase in the captions, after each budget.

    It starts as `first_vector` of `init`, or of the concept's subject where that is empty. A caption whose word is
    cut off at the tokenizer's limit teaches nothing.

    Raises:
        ValueError: the tokenizer knows `token`, no caption has room for it, or the loss is not finite.
    """
    tokenizer = deepcopy(model.tokenizer)
    tokenizer.add_tokens(token)
    if len(tokenizer) == len(model.tokenizer):
        raise ValueError(f"expected a word that the tokenizer lacks, got {token!r}: choose another.")
    ids = replace(model, tokenizer=tokenizer).ids([substitute(c, concept.phrase, token) for c in examples.captions])
    is_token = ids == tokenizer.convert_tokens_to_ids(token)  # (N, L)
    if not is_token.any():
        raise ValueError(f"expected {token!r} among the first {ids.shape[1]} tokens, got none: shorten the captions.")
    others = model.words(ids.masked_fill(is_token, 0)).detach()  # (N, L, D)
    v = nn.Parameter(first_vector(model, init or concept.subject))

    def encode(chosen: Tensor) -> Tensor:
        return model.encode_words(torch.where(is_token[chosen][..., None], v, others[chosen]))

    pauses = train(
        model,
        [v],
        examples,
        lr=lr,
        batch=batch,
        budgets=budgets,
        rng=rng,
        report=report,
        encode=encode,
        clip=None,  # as the published scripts
    )
    for step in pauses:
        yield Snapshot(steps=step, tokens={token: v.detach().float().cpu().clone()})


@torch.no_grad()
def first_vector(model: Model, text: str) -> Tensor:
    """The mean `(D,)` of the text's word vectors; of the whole table if the text is empty."""
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    return model.table[ids or slice(None)].mean(0)
