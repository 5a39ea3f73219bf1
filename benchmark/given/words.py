"""Names that go into tables, terminals, spreadsheets and paths, and texts with places for words."""

from collections.abc import Mapping
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator

from benchmark.errors import shown

LONGEST, FORMULA = 200, "=+-@"  # a spreadsheet takes what begins so for a formula
RULE = f"a name of 1 to {LONGEST} printable letters, without blanks around it and none of {' '.join(FORMULA)} before it"


def label(text: object) -> str:
    """A name as it is.

    Raises:
        ValueError: it is no text, is empty or long, or says something to a terminal or a spreadsheet.
    """
    is_plain = isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable() and text.strip() == text
    if is_plain and isinstance(text, str) and not text.startswith(tuple(FORMULA)):
        return text
    raise ValueError(f"expected {RULE}, got {shown(text)}")


def phrase(text: str) -> str:
    """Words for a prompt as they are.

    Raises:
        ValueError: they are blank, or hold control characters.
    """
    if not text.strip() or any((c < " " and c not in "\t\n\r") or c == "\x7f" for c in text):
        raise ValueError(f"expected words without control characters, got {shown(text)}")
    return text


Label = Annotated[str, AfterValidator(label)]
Phrase = Annotated[str, AfterValidator(phrase)]


def places(text: str) -> list[str]:
    """The names between braces, in order; `{{` and `}}` are braces.

    Raises:
        ValueError: something else stands between braces: a format or a conversion can make any text of any length.
    """
    found = []
    for _, name, form, conversion in Formatter().parse(text):
        if name is None:
            continue
        if form or conversion or not name or set(name) & set(".[]{}"):
            raise ValueError(f"expected the name of a value alone in each pair of braces, got {shown(text)}")
        found.append(name)
    return found


def filled(text: str, words: Mapping[str, str]) -> str:
    """The text with each name in braces replaced by its words.

    Raises:
        ValueError: as `places`; or a name has no words.
    """
    for name in places(text):
        if name not in words:
            raise ValueError(f"expected words for {shown(name)}, got those of {', '.join(words) or 'none'}")
    return text.format_map(words)
