"""Prompts that a model cannot read whole: what stands behind the tokenizer's last place is cut, as by diffusers.

Needs the tokenizer's files, no weights.
"""

import json
from collections.abc import Iterable
from pathlib import Path

LENGTH = 77  # of CLIP's text encoders, with the marks of begin and end


def limit_of(folder: Path) -> int:
    """How many tokens the model in `folder` reads, with the marks of begin and end."""
    try:
        found = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["model_max_length"]
    except (OSError, ValueError, KeyError, TypeError):
        return LENGTH
    return int(found) if isinstance(found, int | float) and 2 < found < 10**6 else LENGTH


def cut(folder: Path, texts: Iterable[str]) -> dict[str, int]:
    """The texts that are longer than the model in `folder` reads, each with its number of tokens.

    A byte is one token at most, so that short texts need no tokenizer, and most runs load none.
    """
    limit = limit_of(folder)
    long = [text for text in dict.fromkeys(texts) if len(text.encode(errors="replace")) + 2 > limit]
    if not long:
        return {}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    counts = [len(ids) for ids in tokenizer(long, truncation=False, verbose=False)["input_ids"]]
    return {text: count for text, count in zip(long, counts, strict=True) if count > limit}
