"""Several concepts that one defense erases at once: one card for the defense, and theirs for who attacks and judges."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmark.data.cards import load_concept
from benchmark.errors import DataError
from benchmark.types import Concept, Prompt

FOR_DEFENSE = ("defender", "prior")  # the splits that a defense may see
OF_OTHERS = ("retained", "cross", "safe", "prior", "benign")  # the splits that show what is to stay


def load(source: str | Sequence[str], model: str) -> Concept:
    """A card, or one for several concepts erased at once.

    Raises:
        ConfigError: there is no such card.
        DataError: a card cannot be used, or several not together.
    """
    if isinstance(source, str):
        return load_concept(source, model)
    return together([load_concept(name, model) for name in source])


def together(members: Sequence[Concept]) -> Concept:
    """One card for several concepts. Of each one's prompts for what is to stay, those that name another one go.

    Raises:
        DataError: they are fewer than two or of different kinds, one is new to the base, or of what is to stay nothing
            is left.
    """
    names = tuple(concept.name for concept in members)
    if len(set(names)) < max(2, len(names)):
        raise DataError(f"expected at least two different concepts to erase together, got {', '.join(names)}.")
    for what, found in (("kind", {m.kind for m in members}), ("scenario", {m.scenario for m in members})):
        if len(found) > 1 or found == {"personalize"}:
            raise DataError(
                f"expected concepts of one {what} that the base knows, got {', '.join(sorted(found))} of "
                f"{', '.join(names)}: erase them in rows of their own."
            )
    known = [replace(m, prompts=tuple(without(m, members)), together=names) for m in members]
    for member, card in zip(known, members, strict=True):
        for split in {prompt.split for prompt in card.prompts} - {prompt.split for prompt in member.prompts}:
            raise DataError(
                f"expected prompts of the split {split!r} of {member.name!r} that name none of {', '.join(names)}, got "
                "none: add some to its card."
            )
    return replace(
        known[0],
        name="+".join(names),
        phrase=", ".join(m.phrase for m in members),
        wordings=tuple(dict.fromkeys(text for m in members for text in m.wordings)),
        paraphrases=(),
        subject="",
        prompts=tuple(first_of_each(p for m in known for p in m.prompts if p.split in FOR_DEFENSE)),
        pictures=tuple(p for m in members for p in m.pictures if p.split in FOR_DEFENSE),
        members=tuple(known),
        together=(),
    )


def without(card: Concept, members: Sequence[Concept]) -> Iterable[Prompt]:
    """The prompts of a card, less those for what is to stay that name or show another of the concepts."""
    others = [m for m in members if m.name != card.name]
    for prompt in card.prompts:
        text = prompt.text.lower()
        is_theirs = any(m.phrase.lower() in text or prompt.label == m.name for m in others)
        if not (prompt.split in OF_OTHERS and is_theirs):
            yield prompt


def first_of_each(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts, each text once."""
    return list({prompt.text: prompt for prompt in reversed(list(prompts))}.values())[::-1]
