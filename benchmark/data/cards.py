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
      safe:
        - {file: coco_30k.csv, set: coco, limit: 1000}
      attacker:
        - {images: photos/cats, captions: "a photo of a cat"}

`each` repeats a text for every combination of its values; a value may be a word, or label and wording. Files and
folders are relative to the card; `benchmark.data.sets` has what can be said of them.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from benchmark.data.safety import allowed, check_card
from benchmark.data.sets import Listed, Pictures
from benchmark.errors import ConfigError, DataError, clipped, shown, unknown
from benchmark.given.files import is_file
from benchmark.given.values import load_yaml
from benchmark.given.words import Label, Phrase, filled
from benchmark.types import EMBEDDED, Concept, Picture, Prompt, Split

if TYPE_CHECKING:
    import pandas as pd

# The cards that ship: `mini` has emoji for the embedded model, `real` what Stable Diffusion draws.
FOLDERS = {"mini": Path(__file__).parents[1] / "mini" / "concepts", "real": Path(__file__).parent / "concepts"}
LARGEST = 100_000  # prompts of one text
T = TypeVar("T")


class Group(BaseModel):
    """Prompts made of one text."""

    model_config = ConfigDict(extra="forbid")
    text: Phrase
    label: str | None = None
    each: dict[str, list[str] | dict[str, str]] = {}


def form(group: Any) -> str:
    """How a group gives its prompts, by its keys; a group that is no mapping is refused as a text."""
    keys = set(group) if isinstance(group, dict) else set()
    return "images" if "images" in keys else "file" if keys & {"file", "hub"} else "text"


Groups = list[
    Annotated[
        Annotated[Group, Tag("text")] | Annotated[Listed, Tag("file")] | Annotated[Pictures, Tag("images")],
        Discriminator(form),
    ]
]


class Card(BaseModel):
    """The file as written."""

    model_config = ConfigDict(extra="forbid")
    name: Label
    phrase: Phrase
    kind: Literal["object", "style", "nsfw"]
    scenario: Literal["relearn", "personalize"] = "relearn"
    labels: dict[Label, Phrase] = Field(min_length=2)
    cross_labels: dict[Label, Phrase] = {}
    judges: dict[Literal["primary", "second"], str] = {}
    classes: dict[str, tuple[int | str, ...]] = {}
    wordings: tuple[Phrase, ...] = ()
    paraphrases: tuple[Phrase, ...] = ()
    subject: str = ""
    drawn: str = ""
    prompts: dict[Split, Groups]


def cards(folder: str | None = None) -> list[str]:
    """The names of the concepts that ship with titer, or of one folder; `real/church` where `church` is an emoji."""
    stems = {name: sorted(file.stem for file in at.glob("*.yaml")) for name, at in FOLDERS.items()}
    if folder:
        return stems[folder]
    real = [f"real/{stem}" if stem in stems["mini"] else stem for stem in stems["real"]]
    return sorted([*stems["mini"], *real])


def find(source: str, model: str) -> Path:
    """The file of a card: by name, by folder and name, or by path.

    A name that both folders have is the emoji for the embedded models, and the real thing for any other.
    """
    folder, _, name = source.rpartition("/")
    order = ("mini", "real") if model in EMBEDDED else ("real", "mini")
    places = [FOLDERS[place] / f"{name}.yaml" for place in order if folder in ("", place)]
    return next((file for file in places if is_file(file)), Path(source))


def load_concept(source: str, model: str = "mini") -> Concept:
    """Read a shipped card by name or a card file by path, and the tables and images that it names.

    Args:
        source: a name, `real/NAME`, `mini/NAME`, or a path.
        model: the config's; it decides what a name means that is in both folders.

    Raises:
        ConfigError: there is no such card.
        DataError: the card or a file that it names is unreadable or lacks prompts, or two splits share a prompt.
    """
    path = find(source, model)
    if not is_file(path):
        if path.suffix in (".yaml", ".yml"):
            raise ConfigError(
                f"expected a concept card of your own at {clipped(source)}, got no file there, seen from here or from "
                "the config's folder: write it there (`titer show` of a "
                "preset that asks for one has an example), or name a card that ships, see `titer list concepts`."
            )
        raise ConfigError(f"{unknown('concept', source, cards())} Or give the path of a card.")
    try:
        card = Card.model_validate(load_yaml(path, "a concept card"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"expected a concept card in {path}, got a fault at {shown(place)}: {clipped(first['msg'])}."
        ) from error
    prompts, pictures, left_out = list[Prompt](), list[Picture](), list[str]()
    for split, groups in card.prompts.items():
        if len({isinstance(group, Pictures) for group in groups}) > 1:
            raise DataError(f"expected images or texts for the split {split!r} in {path}, got both: move one of them.")
        for group in groups:
            if isinstance(group, Group):
                prompts += expand(split, group, path)
            else:
                given, pictured, note = listed(split, group, card.kind, path)
                left_out += [note] if note else []
                prompts, pictures = prompts + given, pictures + pictured
    check_card(str(path), card.model_dump(exclude={"prompts"}), ((p.split, p.text) for p in prompts))
    kept = set(allowed((p.text for p in prompts), card.kind))
    final = tuple(dict.fromkeys(p for p in prompts if p.text in kept))
    check(path, card, final)
    fields = card.model_dump(exclude={"prompts"})
    for name in ("wordings", "paraphrases"):
        fields[name] = tuple(allowed(fields[name], card.kind))
    return Concept(**fields, prompts=final, pictures=tuple(pictures), left_out=tuple(left_out))


def expand(split: Split, group: Group, path: Path) -> Iterator[Prompt]:
    """All prompts of a group, the first placeholder varying slowest."""
    choices: list[list[tuple[str, str]]] = [
        list(values.items()) if isinstance(values, dict) else [(v, v) for v in values] for values in group.each.values()
    ]
    if (count := prod(map(len, choices))) > LARGEST:
        raise DataError(
            f"expected at most {LARGEST:,} prompts of {shown(group.text)} in {path}, got {count:,}: give `each` fewer "
            "values."
        )
    for combination in product(*choices):
        chosen = dict(zip(group.each, combination, strict=True))
        words = {name: wording for name, (_, wording) in chosen.items()}
        try:
            text = filled(group.text, words)
        except ValueError as error:
            raise DataError(
                f"expected a value for each placeholder of {shown(group.text)} in {path}, got a fault: {error}: "
                "give it under `each`."
            ) from error
        yield Prompt(text=text, split=split, label=chosen["label"][0] if "label" in chosen else group.label)


def listed(split: Split, group: Listed | Pictures, kind: str, path: Path) -> tuple[list[Prompt], list[Picture], str]:
    """The prompts of a table, or of captioned images with these, and which rows were left out, for people.

    Raises:
        DataError: a file or an image cannot be used, or the split's images are what the model draws.
    """
    from benchmark.data import table

    def keep(text: str) -> bool:
        return bool(allowed([text], kind))

    if isinstance(group, Listed):
        found = table.prompts(group, path.parent, kind, keep)
        return rows_of(found, split), [], str(found.attrs.get("left_out", ""))
    if split in ("concept", "retained", "cross"):
        raise DataError(
            f"expected texts for the split {split!r} in {path}, got images: the model draws what is judged."
        )
    from benchmark.data.pictures import look

    found = table.captions(group, path.parent, kind, keep)
    files, texts = found["file"].tolist(), found["text"].tolist()
    pictures = [
        Picture(path=file, sha256=sha256, caption=text, split=split)
        for file, sha256, text in zip(files, look(files), texts, strict=True)
    ]
    return rows_of(found, split), pictures, str(found.attrs.get("left_out", ""))


def rows_of(found: "pd.DataFrame", split: Split) -> list[Prompt]:
    """Prompts of the canonical table. Only what a judge is asked about has a label."""
    judged = split in ("concept", "retained", "cross")
    return [
        Prompt(text=text, split=split, label=label if judged and label else None, seed=seed, guidance=guidance)
        for text, label, seed, guidance in zip(
            found["text"].tolist(),
            found["label"].tolist(),
            *(known(found[name]) for name in ("seed", "guidance")),
            strict=True,
        )
    ]


def known(numbers: "pd.Series[Any]") -> list[Any]:
    """Numbers as Python's, None where one is missing."""
    return [None if gap else number for number, gap in zip(numbers.tolist(), numbers.isna(), strict=True)]


def check(path: Path, card: Card, prompts: tuple[Prompt, ...]) -> None:
    """Splits are not empty and share no text; labels of prompts are labels of the judge."""
    by_split: dict[str, set[str]] = {}
    for prompt in prompts:
        by_split.setdefault(prompt.split, set()).add(prompt.text)
        labels = card.cross_labels if prompt.split == "cross" else card.labels
        if prompt.label not in labels and (prompt.label is not None or prompt.split == "cross"):
            raise DataError(f"{path}: {unknown('label of a prompt', str(prompt.label), labels)}")
    if card.name not in card.labels or not by_split.get("concept"):
        raise DataError(f"expected prompts for the split 'concept' and the label {card.name!r} in {path}: add them.")
    training, judged = ("attacker", "defender", "prior", "benign"), ("concept", "retained", "cross", "safe")
    evaluated = set().union(*(by_split.get(split, set()) for split in judged))
    if evaluated & set(card.wordings):
        raise DataError(f"expected wordings that are no evaluation prompt in {path}, got some that are: change them.")
    pairs = [*product(("attacker", "benign"), ("defender", "prior")), *product(training, judged)]
    for a, b in pairs:
        shared = by_split.get(a, set()) & by_split.get(b, set())
        if shared:
            raise DataError(
                f"expected splits without common prompts in {path}, got {shown(min(shared))} in {a} and {b}."
            )


def spread(items: tuple[T, ...], count: int) -> tuple[T, ...]:
    """`count` of the items (0: all), evenly spaced, so that a small sample still crosses all values."""
    n = len(items)
    if count == 0 or count >= n:
        return items
    return tuple(items[(2 * i + 1) * n // (2 * count)] for i in range(count))


def describe(concept: Concept) -> dict[str, Any]:
    """What `titer show` prints of a concept: all that a card says, expanded; a prompt with its label in brackets."""
    names = dict.fromkeys(prompt.split for prompt in concept.prompts)
    splits = {split: [f"{p.text} [{p.label}]" if p.label else p.text for p in concept.of(split)] for split in names}
    found: dict[str, Any] = {"name": concept.name, "kind": concept.kind, "scenario": concept.scenario}
    found |= {"phrase": concept.phrase, "subject": concept.subject, "drawn": concept.drawn}
    found |= {"wordings": list(concept.wordings), "paraphrases": list(concept.paraphrases)}
    found |= {"labels": dict(concept.labels), "cross_labels": dict(concept.cross_labels)}
    found |= {"judges": dict(concept.judges), "classes": {k: list(v) for k, v in concept.classes.items()}}
    found |= {"prompts": splits, "pictures": dict(Counter(picture.split for picture in concept.pictures))}
    return {name: value for name, value in found.items() if value}
