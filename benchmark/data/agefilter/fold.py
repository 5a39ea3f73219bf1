"""Text -> lower-case ASCII as a reader sees it, whatever letters it is written with; each step is linear.

HTML entities are read, compatibility forms (full width, mathematical, circled, superscript) become plain, accents and
whatever has no width go, Latin letters outside ASCII and emoji are spelled by `anyascii`: U+1F467 is "girl". Letters of
another script are not read at all: the text is refused, so that no look-alike gets through.
"""

import unicodedata
from functools import lru_cache
from html import unescape

from anyascii import anyascii

FOREIGN = "\x00"
SPELLED = {"ĸ": "k"}  # anyascii reads it as q
GONE = {"Mn", "Me", "Mc", "Cf", "Cc"}  # marks, formats without width, controls
UNKNOWN = {"Cn", "Co", "Cs"}  # not assigned, private, half a pair


def fold(text: str) -> str | None:
    """The text in lower-case ASCII; None if it holds a letter that is not Latin, or no character at all."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.lower()
    whole = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", unescape(unescape(text))))
    found = "".join(map(spelled, whole))
    return None if FOREIGN in found else found.lower()


@lru_cache(maxsize=10_000)
def spelled(c: str) -> str:
    """One character in ASCII: nothing if it has no width, FOREIGN if it cannot be read."""
    if c.isspace():
        return " "
    category = unicodedata.category(c)
    if category in GONE:
        return ""
    if c.isascii():
        return c
    if category in UNKNOWN or (category[0] == "L" and not unicodedata.name(c, "").startswith("LATIN ")):
        return FOREIGN
    return SPELLED.get(c, anyascii(c) or " ")
