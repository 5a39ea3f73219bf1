"""Words for people by age, however they are spelled: joined, split, stretched, misspelt, with digits for letters."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from benchmark.data.agefilter.tables import ADULT, ENGLISH, HARMLESS, MISSPELT, PHRASES, STEMS, WHOLE, WORDS

PARTS = re.compile(r"[a-z]+|[0-9]+")
POSSESSIVE = re.compile(r"(?<=[a-z])'s(?![a-z])")
LETTERS = re.compile(r"[a-z]+")
LEET = {one: str.maketrans("013456789@$!|+", f"o{one}easgtbgas{one}{one}t") for one in "il"}
SPLITTABLE = frozenset(word for word in (*ENGLISH, *STEMS, *MISSPELT) if len(word) > 2) - WHOLE
LONGEST_SPLIT = max(map(len, SPLITTABLE))
LONGEST_MISSPELT = max(map(len, MISSPELT)) + 1
QUOTES = "!|+$@.,;:?()[]{}\"'"
THRICE = re.compile(r"(.)\1\1")
RUN = re.compile(r"(.)\1+")


def either(phrases: Iterable[str]) -> re.Pattern[str]:
    """A pattern of phrases as whole words, with up to three characters that are no letters between two words."""
    spaced = "|".join(re.escape(phrase).replace(r"\ ", "[^a-z0-9]{1,3}") for phrase in sorted(phrases, reverse=True))
    return re.compile(rf"(?<![a-z0-9])(?:{spaced})(?![a-z0-9])")


TAKEN_OUT, MEANT = either(ADULT), either(PHRASES)


def without_adults(text: str) -> str:
    """Folded text without the everyday phrases of adult life."""
    return TAKEN_OUT.sub(" # ", text)


def name_age(text: str) -> bool:
    """True if folded text has a word or a phrase of the tables, in any of its spellings."""
    text = LETTERS.sub(lambda found: "#" if found[0] in HARMLESS else found[0], text)
    return bool(MEANT.search(text)) or any(map(is_meant, set(spellings(text)))) or any(map(split, readings(text)))


def spellings(text: str) -> Iterator[str]:
    """Every word; every run without blanks as one word; and the same with letters for digits and signs."""
    for chunk in set(text.split()):
        if chunk.isalpha():
            yield chunk
            continue
        alone = PARTS.findall(chunk)
        yield from alone
        letters = "".join(part for part in alone if part.isalpha())
        yield letters
        if len(letters) < sum(map(str.isdigit, shorter(chunk))):
            continue
        for one in (chunk, chunk.strip(QUOTES)):
            yield from ("".join(LETTERS.findall(one.translate(table))) for table in LEET.values())


def readings(text: str) -> Iterator[list[str]]:
    """The words in order; and, with digits or signs among them, with letters for these."""
    text = POSSESSIVE.sub("", text)
    plain = PARTS.findall(text)
    yield plain
    for table in LEET.values():
        read = LETTERS.findall(text.translate(table))
        if read != plain:
            yield read


def split(parts: list[str]) -> bool:
    """True if neighbours make up a word together: "te en", "k i d"."""
    for start in range(len(parts) - 1):
        joined = parts[start]
        for part in parts[start + 1 : start + LONGEST_SPLIT]:
            joined += part
            if len(joined) > LONGEST_SPLIT:
                break
            if joined in SPLITTABLE:
                return True
    return False


@lru_cache(maxsize=100_000)
def is_meant(word: str) -> bool:
    """True for a word of the tables, one that holds a stem, one that is stretched, or one with a slip."""
    if not word or word in HARMLESS:
        return False
    if word in WORDS or any(stem in word for stem in STEMS) or slipped(word):
        return True
    return bool(THRICE.search(word)) and (short := shorter(word)) is not None and stretched(short)


def shorter(word: str) -> str:
    """A word with one letter for each run of it."""
    return RUN.sub(r"\1", word)


SHORT_WORDS = frozenset(map(shorter, WORDS))
SHORT_STEMS = tuple(sorted(set(map(shorter, STEMS))))


def stretched(short: str) -> bool:
    """True for the short form of a word of the tables, or of one that holds a stem."""
    return short in SHORT_WORDS or any(stem in short for stem in SHORT_STEMS)


def less_one(word: str) -> Iterator[str]:
    """A word, and all that it is without one of its letters."""
    yield word
    yield from (word[:at] + word[at + 1 :] for at in range(len(word)))


NEAR: dict[str, set[str]] = {}
for listed in MISSPELT:
    for less in less_one(listed):
        NEAR.setdefault(less, set()).add(listed)


def slipped(word: str) -> bool:
    """True if one letter more, less, other or swapped with its neighbour makes it a long word of the tables.

    The first letter must be right: "laughter" is no "daughter".
    """
    if not 5 <= len(word) <= LONGEST_MISSPELT:
        return False
    near = {listed for less in less_one(word) for listed in NEAR.get(less, ())}
    return any(listed[0] == word[0] and is_one_slip(word, listed) for listed in near)


def is_one_slip(a: str, b: str) -> bool:
    """True if two words differ by at most one insertion, deletion, substitution or swap of neighbours."""
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    p, q = a[start:], b[start:]
    return p == q or p[1:] == q or p == q[1:] or p[1:] == q[1:] or (p[:2] == q[1::-1] and p[2:] == q[2:])
