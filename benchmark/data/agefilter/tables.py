"""The tables of `words.yaml`, read once."""

from pathlib import Path
from typing import Any

import yaml

RAW: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))


def words_of(name: str) -> frozenset[str]:
    """The words of a table."""
    return frozenset(RAW[name].split())


def numbered(name: str, first: int) -> dict[str, int]:
    """The words of a table by their place in it, from `first` on."""
    return {word: number for number, word in enumerate(RAW[name].split(), first)}


ENGLISH = words_of("words") | {f"{word}s" for word in words_of("words")} | words_of("also")
WORDS = ENGLISH.union(*(text.split() for text in RAW["languages"].values()))
STEMS = tuple(sorted(words_of("stems")))
HARMLESS = words_of("harmless")
MISSPELT, WHOLE = words_of("misspelt"), words_of("whole")
ADULT, PHRASES = tuple(RAW["adult"]), tuple(RAW["phrases"])
SEXUAL = words_of("sexual")
