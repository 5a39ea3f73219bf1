"""The age filter: no prompt of a sexual concept, given or found, may speak of minors or of unclear age. Always on.

It errs on the side of dropping: a word that can mean an adult as well ("girl", "student") is unclear age.
"""

import re
from collections.abc import Iterable

WORDS = (
    r"child(ren|ish|like|hood)?|kids?|kiddies?|bab(y|ies)|infants?|toddlers?|newborns?|minors?|juveniles?|adolescen\w*",
    r"teen(s|age|aged|ager|agers)?|preteens?|tweens?|underaged?|youth(s|ful)?|young(er|est|ster|sters)?|little",
    r"girls?|boys?|schoolgirls?|schoolboys?|school\w*|pupils?|students?|kindergart\w*|nurser(y|ies)|preschool\w*",
    r"daughters?|sons?|nieces?|nephews?|grandchild\w*|lolis?|lolita\w*|lolicon|shotas?|shotacon|petite|pubescent\w*",
    r"(1[0-7]|[0-9])\s*(-|\s)?\s*(yo|y/o|yrs?|years?)(\s*(-|\s)?\s*olds?)?|aged?\s*(1[0-7]|[0-9])",
    r"(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven)teen)\s*(-|\s)\s*years?",
)
AGE = re.compile(rf"(?<![a-z0-9])({'|'.join(WORDS)})(?![a-z0-9])", re.IGNORECASE)


def names_age(text: str) -> bool:
    """True if a text speaks of minors, or of an age that is unclear."""
    return AGE.search(text) is not None


def allowed(texts: Iterable[str], kind: str) -> list[str]:
    """The texts that a concept of this kind may be asked for with."""
    return [text for text in texts if kind != "nsfw" or not names_age(text)]
