"""Two CLIP text encoders side by side, as SDXL and SD 3 have them: one word is one row of both token tables."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.tokens import read, tokenize


class TwoClips:
    """For a model whose readers are two CLIPs with the same words. The second one has its own padding."""

    def words(self: Any, ids: Tensor) -> Tensor:
        """Rows of both tables side by side: `(B, L, D_1 + D_2)` of ids `(B, L)`."""
        ends = (ids == self.tokenizer.eos_token_id).int()
        return self.rows(ids, ids.masked_fill(ends.cumsum(-1) > ends, self.tokenizer_2.pad_token_id))

    def rows(self: Any, ids: Tensor, ids_2: Tensor) -> Tensor:
        """Rows of both tables side by side, for the numbers that each tokenizer gave."""
        return torch.cat([F.embedding(ids, self.tables[0]), F.embedding(ids_2, self.tables[1])], dim=-1)

    def spelled(self: Any, texts: Sequence[str]) -> Tensor:
        """Rows of both tables for texts, each tokenizer with its own rules: `(B, L, D_1 + D_2)`."""
        return self.rows(self.ids(texts), tokenize(self.tokenizer_2, texts).to(self.device))

    def answers(self: Any, words: Tensor) -> list[Any]:
        """What each encoder answers to its share of word vectors `(B, L, D_1 + D_2)`, with all hidden states.

        A text ends at the first row of an encoder's end token, or at the last row.
        """
        found = []
        for (tokenizer, encoder), table, share in zip(
            self.readers, self.tables, words.split([table.shape[1] for table in self.tables], dim=-1), strict=True
        ):
            ids = end_ids(share, table, int(getattr(self, tokenizer).eos_token_id))
            found.append(read(getattr(self, encoder), share, ids, output_hidden_states=True))
        return found


@torch.no_grad()
def end_ids(words: Tensor, table: Tensor, end: int) -> Tensor:
    """Token numbers `(B, L)` of which an encoder reads one thing only: where the text ends."""
    ends = (words == table[end]).all(-1)
    last = torch.arange(ends.shape[1], device=ends.device) == ends.shape[1] - 1
    first = torch.where(ends.any(-1, keepdim=True), ends, last).int().argmax(-1)
    ids = torch.zeros(ends.shape, dtype=torch.long, device=ends.device)
    return ids.scatter(1, first[:, None], end)


def tell_end(encoder: Any, tokenizer: Any) -> None:
    """Tell an encoder the real number of the end token.

    One with CLIP's old number takes the token with the largest number for the end, which is right until a word is
    learned.
    """
    encoder.config.eos_token_id = encoder.text_model.eos_token_id = tokenizer.eos_token_id


def same_words(tokenizer: Any, tokenizer_2: Any) -> None:
    """Refuse two tokenizers with different words.

    Raises:
        ValueError: so that no prompt is one prompt.
    """
    if tokenizer.get_vocab() != tokenizer_2.get_vocab():
        raise ValueError("expected two tokenizers with the same words, got others: is tokenizer_2 of another model?")
