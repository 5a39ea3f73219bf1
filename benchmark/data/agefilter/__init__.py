"""The age filter's reading of a text: does it speak of minors, or of an age that is unclear? Pure, and linear in time.

fold.py      whatever it is written with -> lower-case ASCII; letters of another script are refused
words.py     words for people by age, in any spelling: joined, split, stretched, misspelt, digits for letters
numbers.py   ages, grades, years of birth
words.yaml   the tables

It is a list of words with a wide margin, no reader: see docs/safety.md for what it cannot do.
"""

from functools import lru_cache

from benchmark.data.agefilter import numbers, words
from benchmark.data.agefilter.fold import fold
from benchmark.data.agefilter.tables import SEXUAL

LONGEST = 10_000  # characters: a text encoder reads some hundreds, so what is longer is refused unread


@lru_cache(maxsize=200_000)
def names_age(text: str) -> bool:
    """True if a text speaks of minors or of an unclear age, or cannot be read: too long, or in another script."""
    if len(text) > LONGEST:
        return True
    folded = fold(text)
    return folded is None or speaks_of_age(folded)


def speaks_of_age(folded: str) -> bool:
    """True if folded text does; no limit on its length."""
    rest = words.without_adults(folded)
    return words.name_age(rest) or numbers.name_age(rest)


@lru_cache(maxsize=200_000)
def names_sex(text: str) -> bool:
    """True if a text says by one of a few plain words that it is of a sexual concept."""
    folded = fold(text[:LONGEST])
    return folded is not None and not SEXUAL.isdisjoint(words.spellings(folded))
