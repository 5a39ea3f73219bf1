"""Concept cards: YAML -> Concept.

    name: cat                     # its label
    phrase: cat                   # what a defense erases
    wordings: [an emoji of a cat] # other ways to ask for it, for defenses that erase several
    paraphrases: [a kitten]       # what an attacker may say instead of the phrase
    kind: object
    scenario: relearn
    labels: {cat: an emoji of a cat, dog: an emoji of a dog, something else: something else}
    prompts:
      concept:
        - {text: "a {style} style emoji of a cat", label: cat, each: {style: [noto, fluent]}}
      retained:
        - {text: "an emoji of {label}", each: {label: {dog: a dog}}}

`each` repeats a text for every combination of its values; a value may be a word, or label and wording.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmark.errors import ConfigError, DataError, unknown
from benchmark.safety import allowed
from benchmark.types import Concept, Prompt, Split

CARDS = Path(__file__).parent / "mini" / "concepts"


class Group(BaseModel):
    """Prompts made of one text."""

    model_config = ConfigDict(extra="forbid")
    text: str
    label: str | None = None
    each: dict[str, list[str] | dict[str, str]] = {}


class Card(BaseModel):
    """The file as written."""

    model_config = ConfigDict(extra="forbid")
    name: str
    phrase: str
    kind: Literal["object", "style", "nsfw"]
    scenario: Literal["relearn", "personalize"] = "relearn"
    labels: dict[str, str] = Field(min_length=2)
    wordings: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    subject: str = ""
    drawn: str = ""
    prompts: dict[Split, list[Group]]


def cards() -> list[str]:
    """The names of the concepts that ship with titer."""
    return sorted(file.stem for file in CARDS.glob("*.yaml"))


def load_concept(source: str) -> Concept:
    """Read a shipped card by name or a card file by path.

    Raises:
        ConfigError: there is no such card.
        DataError: the card is unreadable, lacks prompts, or uses one prompt in two splits.
    """
    path = CARDS / f"{source}.yaml" if source in cards() else Path(source)
    if not path.is_file():
        raise ConfigError(f"{unknown('concept', source, cards())} Or give the path of a card.")
    try:
        card = Card.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"expected a concept card in {path}, got {' '.join(str(error).split())[:300]}") from error
    prompts = tuple(p for split, groups in card.prompts.items() for group in groups for p in expand(split, group, path))
    kept = set(allowed((p.text for p in prompts), card.kind))
    prompts = tuple(p for p in prompts if p.text in kept)
    check(path, card, prompts)
    fields = card.model_dump(exclude={"prompts"})
    for name in ("wordings", "paraphrases"):
        fields[name] = tuple(allowed(fields[name], card.kind))
    return Concept(**fields, prompts=prompts)


def expand(split: Split, group: Group, path: Path) -> Iterator[Prompt]:
    """All prompts of a group, the first placeholder varying slowest."""
    choices: list[list[tuple[str, str]]] = [
        list(values.items()) if isinstance(values, dict) else [(v, v) for v in values] for values in group.each.values()
    ]
    for combination in product(*choices):
        chosen = dict(zip(group.each, combination, strict=True))
        words = {name: wording for name, (_, wording) in chosen.items()}
        try:
            text = group.text.format(**words)
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"expected a value for each placeholder of {group.text!r} in {path}, got {error}"
            ) from error
        yield Prompt(text=text, split=split, label=chosen["label"][0] if "label" in chosen else group.label)


def check(path: Path, card: Card, prompts: tuple[Prompt, ...]) -> None:
    """Splits are not empty and share no text; labels of prompts are labels of the judge."""
    by_split: dict[str, set[str]] = {}
    for prompt in prompts:
        by_split.setdefault(prompt.split, set()).add(prompt.text)
        if prompt.label is not None and prompt.label not in card.labels:
            raise DataError(f"{path}: {unknown('label of a prompt', prompt.label, card.labels)}")
    if card.name not in card.labels or not by_split.get("concept"):
        raise DataError(f"expected prompts for the split 'concept' and the label {card.name!r} in {path}: add them.")
    training, judged = ("attacker", "defender", "prior", "benign"), ("concept", "retained", "safe")
    evaluated = set().union(*(by_split.get(split, set()) for split in judged))
    if evaluated & set(card.wordings):
        raise DataError(f"expected wordings that are no evaluation prompt in {path}, got some that are: change them.")
    pairs = [*product(("attacker", "benign"), ("defender", "prior")), *product(training, judged)]
    for a, b in pairs:
        shared = by_split.get(a, set()) & by_split.get(b, set())
        if shared:
            raise DataError(f"expected splits without common prompts in {path}, got {min(shared)!r} in {a} and {b}.")


def spread(prompts: tuple[Prompt, ...], count: int) -> tuple[Prompt, ...]:
    """`count` of the prompts (0: all), evenly spaced, so that a small sample still crosses all values."""
    n = len(prompts)
    if count == 0 or count >= n:
        return prompts
    return tuple(prompts[(2 * i + 1) * n // (2 * count)] for i in range(count))


def describe(concept: Concept) -> dict[str, Any]:
    """What `titer show` prints of a concept."""
    splits = {split: [p.text for p in concept.of(split)] for split in ("concept", "retained", "safe", "attacker")}
    return {"name": concept.name, "kind": concept.kind, "phrase": concept.phrase, "prompts": splits}
