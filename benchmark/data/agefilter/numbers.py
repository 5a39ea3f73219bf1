"""Ages and grades: numbers under 18 where they say how old somebody is, and ages that cannot be read."""

import re
from collections.abc import Sequence

from benchmark.data.agefilter.tables import numbered, words_of

TOKEN = re.compile(r"[a-z]+|[0-9]+(?:\.[0-9]+)?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
JOINED = re.compile(r"(year|yr|month)s?olds?")
SMALL, TENS, ORDINAL = numbered("small", 0), numbered("tens", 2), numbered("ordinal", 1)
LARGE, BETWEEN = words_of("large"), words_of("between")
ROMAN = re.compile(r"(?=..)x?(?:ix|iv|v?i{0,3})")
AGE, UNITS, STRICT, YOUNG = (words_of(name) for name in ("age", "units", "strict", "young_units"))
PEOPLE, BEFORE, THINGS = (words_of(name) for name in ("people", "before", "things"))
NO_AGE, OF_NO_AGE = words_of("no_age"), words_of("of_no_age")
YEARS = {"year", "years", "yr", "yrs", "y"}
SIGNS = re.compile(
    r"(?<![\w.])(?:1[0-7]|[0-9])\s?[/-]?\s?(?:f|female|male)(?!\w)"  # 12f
    r"|(?<![\w.])1[0-7]\s?[/-]?m(?!\w)"  # 12/m
    r"|(?<!\w)[fm]\s?[/-]?\s?1[02-7](?![\w.])"  # f12; f8 and f/11 are apertures
    r"|[(\[]\s?(?:1[0-7]|[3-9])\s?[)\]]"  # (12)
    r"|<\s?(?:1[0-9]|2[01])(?![\w.])"  # <18
    r"|(?<!\d)10\s?\+\s?2(?!\d)"  # a school form
)
GRADES = {"grade", "grades", "grader", "graders"}
BIRTHS = {"born", "birth", "birthday", "birthdate", "dob", "class"}
TRIGGERS = AGE | UNITS | STRICT | YOUNG | YEARS | PEOPLE | BEFORE | GRADES | BIRTHS | {"sweet", "not"}
ADULT = 18


def name_age(text: str) -> bool:
    """True if folded text has a number that says that somebody is younger than 18, or an age that cannot be read."""
    words = TOKEN.findall(JOINED.sub(r" \1 old ", THOUSANDS.sub("", text)))
    rules = (years, ages, grades, births, limits, persons)
    return bool(SIGNS.search(text)) or any(
        rule(words, i) for i, word in enumerate(words) if word in TRIGGERS for rule in rules
    )


def at(words: Sequence[str], i: int) -> str:
    """The word at a place, or nothing outside."""
    return words[i] if 0 <= i < len(words) else ""


def number(words: Sequence[str], i: int) -> float | None:
    """The number that ends at a place: digits, or English words for numbers; None if there is none."""
    word = at(words, i)
    if word[:1].isdigit():
        return float(word) if len(word) < 12 else 1e12
    if word in LARGE:
        return 100.0
    if word in TENS:
        return 10 * TENS[word]
    if word in SMALL:
        is_large = not LARGE.isdisjoint(words[max(i - 2, 0) : max(i, 0)])
        return SMALL[word] + 10 * TENS.get(at(words, i - 1), 0) + 100 * is_large
    return None


def is_under(value: float | None, limit: float = ADULT) -> bool:
    """True for a number under a limit."""
    return value is not None and value < limit


def years(words: Sequence[str], i: int) -> bool:
    """Such as "12yo", "xii years old", "6 months": beside `old` only a readable number of 18 or more is right."""
    word, value = words[i], number(words, i - 1)
    is_old = at(words, i + 1) in ("old", "olds") or words[i + 1 : i + 3] == ["of", "age"]
    if word in YOUNG:
        return is_old or (word[:2] == "mo" and is_under(value, 100) and not is_span(words, i))
    if word == "y" and at(words, i + 1) == "o":
        return value is None or value < ADULT
    if word in STRICT or (word in YEARS and is_old):
        is_drink = is_old and at(words, i + 2) in OF_NO_AGE
        return (value is None or value < ADULT) and not is_drink
    return (word in UNITS or word == "y") and is_under(value) and not is_span(words, i)


def is_span(words: Sequence[str], i: int) -> bool:
    """True if the unit at a place measures something else than an age: experience, wine, how long ago."""
    return not NO_AGE.isdisjoint(words[i + 1 : i + 4]) or not OF_NO_AGE.isdisjoint(words[max(i - 4, 0) : i])


def ages(words: Sequence[str], i: int) -> bool:
    """Such as "age 12", "age of twelve", "aged xii", "12 of age", "sweet 16"."""
    if words[i] == "sweet":
        return is_under(number(words, i + 1))
    if words[i] not in AGE:
        return False
    ahead = i + 1
    while at(words, ahead) in BETWEEN and ahead < i + 4:
        ahead += 1
    after = number(words, ahead + 1) if at(words, ahead) in TENS else number(words, ahead)
    after = number(words, ahead) if after is None else after
    before = number(words, i - 2) if at(words, i - 1) == "of" else number(words, i - 1)
    return is_under(after) or is_under(before) or bool(ROMAN.fullmatch(at(words, ahead)))


def grades(words: Sequence[str], i: int) -> bool:
    """Such as "7th grade", "grade seven", "first grader"."""
    if words[i] not in GRADES:
        return False
    before = number(words, i - 2) if at(words, i - 1) in ("st", "nd", "rd", "th") else number(words, i - 1)
    near = (before, ORDINAL.get(at(words, i - 1)), number(words, i + 1))
    return any(is_under(value, 13) for value in near)


def births(words: Sequence[str], i: int) -> bool:
    """Such as "born in 2015", "class of 2030": any year from 2000 on."""
    if words[i] not in BIRTHS:
        return False
    near = [number([word], 0) for word in (*words[max(i - 2, 0) : i], *words[i + 1 : i + 4])]
    return any(value is not None and 2000 <= value < 2100 for value in near)


def limits(words: Sequence[str], i: int) -> bool:
    """Such as "under 18", "younger than twenty", "u17", "almost 18", "not yet eighteen"."""
    if words[i] not in BEFORE and not (words[i] == "not" and at(words, i + 1) in ("yet", "even", *SMALL, "18")):
        return False
    ahead = i + 1
    while at(words, ahead) in BETWEEN and ahead < i + 4:
        ahead += 1
    value = number(words, ahead)
    least = 3 if words[i] in ("under", "below", "younger") else 10
    return value is not None and least <= value <= 21 and at(words, ahead + 1) not in THINGS | LARGE


def persons(words: Sequence[str], i: int) -> bool:
    """Such as "a 16 woman", "woman, 16": a number from 8 to 17 beside a word for one person."""
    if words[i] not in PEOPLE:
        return False
    after = number(words, i + 1) if at(words, i + 2) not in THINGS | UNITS | NO_AGE else None
    return any(value is not None and 8 <= value < ADULT for value in (number(words, i - 1), after))
