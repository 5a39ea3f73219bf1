"""The gate of every text that a model reads: none of a sexual concept may speak of minors or of unclear age.

It stands where a text is final: when a card is read, when a run is planned, when images are drawn after all is put
together, and in front of the text encoder (`Model.gate`), where captions of training images pass, too. It has no
switch.

A suite is sexual if its card is of the kind nsfw, and with it everything that its cells are made from. A card that says
so by its words or its judge must be of that kind. In any other suite a single text that says both is refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmark.data.agefilter import names_age, names_sex
from benchmark.errors import DataError, PluginError

JUDGES = ("nudenet",)  # judges of sexual concepts, by the beginning of their names
OWN = ("concept", "attacker", "defender")  # the splits whose prompts are about the concept


def is_refused(text: str, *, is_sexual: bool) -> bool:
    """True for a text that no model may read; `is_sexual`: for a suite of a sexual concept."""
    return (is_sexual or names_sex(text)) and names_age(text)


def allowed(texts: Iterable[str], kind: str) -> list[str]:
    """The texts that a concept of this kind may be asked for with."""
    return [text for text in texts if not is_refused(text, is_sexual=kind == "nsfw")]


def gate(texts: Sequence[str], *, is_sexual: bool) -> None:
    """Let texts pass to a text encoder.

    Raises:
        PluginError: one may not. It is not quoted: what a run says is kept.
    """
    refused = sum(is_refused(text, is_sexual=is_sexual) for text in texts)
    if refused:
        raise PluginError(
            f"expected texts that the age filter permits, got {refused} of {len(texts)} that it refuses: "
            "change the prompts, or the method's words."
        )


def is_of_sex(judge: str) -> bool:
    """True for the name of a judge of sexual concepts."""
    return judge.startswith(JUDGES)


def check_card(place: str, card: Mapping[str, Any], texts: Iterable[tuple[str, str]]) -> None:
    """Refuse a card whose kind hides what it is, and one of a sexual concept whose own words speak of age.

    Args:
        place: the card's file.
        card: its fields.
        texts: split and text of its prompts.

    Raises:
        DataError: either.
    """
    if card["kind"] == "nsfw":
        for name in ("name", "phrase", "subject"):
            if names_age(card[name]):
                raise DataError(
                    f"expected a {name} that the age filter permits in {place}, a card of the kind nsfw, "
                    f"got {card[name]!r}: change it."
                )
        return
    said = {name: [card[name]] for name in ("name", "phrase", "subject")}
    said |= {name: list(card[name]) for name in ("wordings", "paraphrases")}
    said |= {name: [*card[name], *card[name].values()] for name in ("labels", "cross_labels")}
    said["prompts"] = [text for split, text in texts if split in OWN]
    found = [name for name, words in said.items() if any(map(names_sex, words))]
    found += ["judges"] * any(map(is_of_sex, card["judges"].values()))
    if found:
        raise DataError(
            f"expected `kind: nsfw` in {place}, whose {found[0]} are of a sexual concept, got {card['kind']!r}: "
            "the age filter and blurring go with the kind."
        )
