"""The published prompt sets: how each names its columns, and what is known to be wrong with it.

None of them ships with titer. A card names one with `set:` and reads the user's own copy:

    - {file: i2p_benchmark.csv, set: i2p, where: {categories: sexual, nudity_percentage: ">50"}, limit: 100}
    - {file: imagenette.csv, set: imagenette, where: {class: church}}
    - {file: names.csv, set: six_cd, text: "a photo of {concept}"}
    - {hub: AIML/captions, revision: 1a2b3c, columns: {text: caption}}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmark.errors import DataError, unknown

# Columns that only tables of unsafe prompts have.
MARKS = {"inappropriate_percentage", "nudity_percentage", "q16_percentage", "sd_safety_percentage", "prompt_toxicity"}
Wanted = str | bool | int | float
Column = Literal["text", "id", "seed", "guidance", "label", "file"]


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """One set. The names of a column are tried in order; case and blanks around them do not matter.

    Attributes:
        text, id, seed, guidance, label, file: names of the column in the copies that are about.
        template: a text made of other columns, for a set without prompts.
        folders: what the names of the folders around an image say, the innermost last.
        unsafe: parts of the names of files with sexual or violent prompts; "" is part of every name.
        repeats: True if several texts may share an id, as the captions of one image do.
        page: where to ask for it or to download it.
    """

    text: tuple[str, ...] = ("prompt", "text", "caption")
    id: tuple[str, ...] = ("case_number", "id", "image_id", "", "Unnamed: 0")
    seed: tuple[str, ...] = ("evaluation_seed", "sd_seed", "seed")
    guidance: tuple[str, ...] = ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance")
    label: tuple[str, ...] = ()
    file: tuple[str, ...] = ("file_name", "filename", "image_path")
    template: str = ""
    folders: tuple[str, ...] = ("label",)
    unsafe: tuple[str, ...] = ()
    repeats: bool = False
    page: str = ""

    @property
    def summary(self) -> str:
        """One line: its columns, and where it is."""
        whose = "nsfw cards only" if "" in self.unsafe else f"nsfw cards only: files with {', '.join(self.unsafe)}"
        parts = [
            f"text: {'|'.join(self.text)}",
            f"label: {'|'.join(self.label)}" * bool(self.label),
            whose * bool(self.unsafe),
            self.page,
        ]
        return "; ".join(filter(None, parts))


HUB = "https://huggingface.co/datasets"
COCO_ID = ("id", "case_number", "image_id", "coco_id", "", "Unnamed: 0")
SETS = {
    "plain": PromptSet(label=("label", "class", "label_str", "artist", "target", "concept")),
    "i2p": PromptSet(unsafe=("",), page=f"{HUB}/AIML-TUDA/i2p"),
    "unlearndiffatk": PromptSet(
        unsafe=("nudity", "violence", "illegal", "i2p"), page="https://github.com/OPTML-Group/Diffusion-MU-Attack"
    ),
    "ring_a_bell": PromptSet(unsafe=("",), page=f"{HUB}/Chia15/RingABell-Nudity"),
    "p4d": PromptSet(unsafe=("",), page=f"{HUB}/joycenerd/p4d"),
    # The adversarial column; `columns: {text: ...}` takes its clean twin.
    "mma": PromptSet(
        text=("adv_prompt", "prompt", "text"),
        unsafe=("",),
        page=f"{HUB}/YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark",
    ),
    # Its specific half has names and no prompts: `text: "a photo of {concept}"` makes them.
    "six_cd": PromptSet(label=("concept",), unsafe=("harm", "nud", "sexual", "violence", "malicious")),
    # An image has several captions, so an image's number is no prompt's.
    "coco": PromptSet(id=COCO_ID, repeats=True, page="https://cocodataset.org/#download"),
    "imagenette": PromptSet(label=("class", "label_str", "label"), page="https://github.com/fastai/imagenette"),
    "artists": PromptSet(label=("artist", "label_str")),
    "unlearncanvas": PromptSet(
        label=("style", "artist", "label"),
        template="A {object} image in {style} style.",
        folders=("style", "object"),
        page=f"{HUB}/OPTML-Group/UnlearnCanvas",
    ),
}


class Rows(BaseModel):
    """What a card says of a table: which file, what its columns are called, and which rows it wants."""

    model_config = ConfigDict(extra="forbid")
    set: str = "plain"
    columns: dict[Column, str | None] = {}
    where: dict[str, Wanted | list[Wanted]] = {}
    limit: int | None = Field(None, ge=1)
    pick: Literal["spread", "first"] = "spread"
    label: str | None = None

    @property
    def name(self) -> str:
        """How messages call the table."""
        return self.set

    @property
    def known(self) -> PromptSet:
        """The set.

        Raises:
            DataError: there is none of that name.
        """
        if self.set not in SETS:
            raise DataError(unknown("prompt set", self.set, SETS))
        return SETS[self.set]


class Listed(Rows):
    """Prompts from a table: a CSV, TSV, JSON, JSONL, parquet or text file, a folder with metadata, or a hub id."""

    file: Path | None = None
    hub: str | None = None
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    text: str | None = None

    @model_validator(mode="after")
    def one_source(self) -> Self:
        """Refuse a table without a place, and one with two."""
        if (self.file is None) == (self.hub is None):
            raise ValueError("expected either `file` or `hub`")
        return self

    @property
    def name(self) -> str:
        """The file or the hub id."""
        return str(self.file or self.hub)


class Pictures(Rows):
    """Real images with captions: from a table in or beside their folder, or one text for all."""

    images: Path
    captions: str | None = None

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.images)


def column(rows: Rows, what: Column, columns: Sequence[str], where: str) -> str | None:
    """The table's name of a column; None if it has none.

    Raises:
        DataError: the card names one that the table lacks.
    """
    if what in rows.columns:
        named = rows.columns[what]
        if named is not None and named not in columns:
            raise DataError(f"{where}: {unknown('column', named, columns)}")
        return named
    plain: Mapping[str, str] = {name.strip().lower(): name for name in reversed(columns)}
    names: tuple[str, ...] = getattr(rows.known, what)
    return next((plain[name.lower()] for name in names if name.lower() in plain), None)


def guard(rows: Rows, name: str, columns: Sequence[str], kind: str) -> None:
    """Refuse unsafe prompts in a card that the age filter would pass over, or from anywhere but the user's own file.

    Raises:
        DataError: either.
    """
    stem = re.split(r"[/\\]", name)[-1].lower()
    if not (MARKS & {c.strip().lower() for c in columns} or any(part in stem for part in rows.known.unsafe)):
        return
    if kind != "nsfw":
        raise DataError(
            f"expected `kind: nsfw` in a card that reads {name}, a set with unsafe prompts, got {kind!r}: "
            "the age filter and blurring go with the kind."
        )
    if isinstance(rows, Listed) and rows.hub:
        page = rows.known.page or f"{HUB}/{rows.hub}"
        raise DataError(
            f"expected your own file of a set with unsafe prompts, got the hub id {rows.hub!r}: "
            f"get it at {page} and write `file:`."
        )
