"""Stored images -> thumbnails with what the judge said of each.

Reads parquet with pyarrow and Pillow, so that a report needs no torch. What cannot be read becomes an empty picture
that says so. In an NSFW suite every picture is blurred in its pixels, and prompts are numbered, not quoted.
"""

import base64
import io
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter, UnidentifiedImageError

from benchmark.plan import Cell, Plan
from benchmark.store import Store
from benchmark.types import Prompt

CONTROL = "none"
JUDGE = ("presence", "concept")
SIDE, LARGE_SIDE = 96, 256  # pixels; smaller images stay as they are
FEW = 500  # thumbnails up to which all are large
BLUR = 1 / 8  # radius, as a share of the side
UNREADABLE = (OSError, SyntaxError, ValueError, KeyError, pa.ArrowException, UnidentifiedImageError)

Verdict = Literal["seen", "absent", "unknown"]
WORDS: dict[Verdict, str] = {"seen": "concept seen", "absent": "concept not seen", "unknown": "not judged"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One thumbnail: `source` is a data URI, empty where there is no readable image.

    score: what the judge's verdict rests on, its share of the concept; None for a judge that keeps none.
    id: the anchor of the picture on the page.
    """

    source: str
    alt: str
    verdict: Verdict
    budget: int
    is_blurred: bool = False
    score: float | None = None
    id: str = ""

    @property
    def words(self) -> str:
        """What the judge said."""
        return WORDS[self.verdict]


@dataclass
class Pictures:
    """Thumbnails and verdicts by cell, each gallery read once."""

    plan: Plan
    store: Store
    at: dict[tuple[str, str, str, int], Cell] = field(init=False)
    images: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    scored: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    slugs: dict[tuple[object, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = min((cell.seed for cell in self.plan.cells), default=0)
        cells = [cell for cell in self.plan.cells if cell.seed == first]
        self.at = {(cell.concept.called, cell.defense, cell.attack, cell.budget): cell for cell in cells}

    def read(self, key: str, side: int, is_blurred: bool) -> dict[str, str]:
        """Data URIs of the first image of each prompt, by prompt id; nothing where the file cannot be read."""
        if (key, side) not in self.images:
            self.images[key, side] = {}
            if self.store.has(key):
                self.images[key, side] = dict(thumbnails(self.store, key, side, is_blurred))
        return self.images[key, side]

    def judged(self, cell: Cell) -> dict[str, Verdict]:
        """The judge's verdict on the first image of each prompt, by prompt id."""
        return {prompt: verdict(row["value"]) for prompt, row in self.scores(cell).items()}

    def doubt(self, cell: Cell) -> dict[str, float]:
        """How far from sure the judge is of that verdict, 0 to 1, by prompt id; 0 for a judge that does not say."""
        rows = self.scores(cell)
        return {p: abs(row["value"] - row["p"]) if row.get("p") is not None else 0.0 for p, row in rows.items()}

    def scores(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """What the judge kept of the first image of each prompt, by prompt id."""
        key = cell.scores.get(JUDGE)
        if key is None or not self.store.has(key):
            return {}
        if key not in self.scored:
            try:
                file = pq.ParquetFile(self.store.path(key) / "scores.parquet")
                kept = [name for name in ("prompt_id", "number", "value", "p") if name in file.schema_arrow.names]
                table = file.read(kept).to_pylist()
            except UNREADABLE:
                table = []
            self.scored[key] = {row["prompt_id"]: row for row in table if row["number"] == 0}
        return self.scored[key]

    def picture(self, cell: Cell, prompt: Prompt, name: str, side: int = SIDE, id: str = "") -> Picture:
        """The first image that a cell has of a prompt."""
        is_blurred = cell.concept.kind == "nsfw"
        source = self.read(cell.images["concept"], side, is_blurred).get(prompt.id, "")
        found = self.judged(cell).get(prompt.id, "unknown")
        score = self.scores(cell).get(prompt.id, {}).get("p")
        share = "" if score is None else f" ({score:.2f})"
        attack = f"{cell.attack}, budget {cell.budget}" if cell.budget else "no attack"
        who = "base" if cell.defense == CONTROL else cell.defense
        missing = "" if source else "not kept; " if is_blurred else "no readable image; "
        blurred = "blurred; " if is_blurred else ""
        alt = f"{missing}{blurred}{name}; model: {who}; attack: {attack}; judge: {WORDS[found]}{share}"
        return Picture(
            source=source, alt=alt, verdict=found, budget=cell.budget, is_blurred=is_blurred, score=score, id=id
        )

    def slug(self, *names: object) -> str:
        """An anchor of these names: no two lists of names share one."""
        return self.slugs.setdefault(names, slug(names, self.slugs.values()))

    def prompts(self, cell: Cell) -> list[tuple[Prompt, str]]:
        """The prompts of a cell and how a page may call them."""
        prompts = self.plan.tasks[cell.images["concept"]].prompts
        hidden = cell.concept.kind == "nsfw"
        return [(p, f"prompt {i + 1}" if hidden else f"“{p.source or p.text}”") for i, p in enumerate(prompts)]

    def arms(self, concept: str, defense: str) -> dict[str, list[int]]:
        """The budgets of each attack on a defended model, in order."""
        found: dict[str, list[int]] = {}
        for c, d, attack, budget in self.at:
            if (c, d) == (concept, defense) and budget:
                found.setdefault(attack, []).append(budget)
        return {attack: sorted(budgets) for attack, budgets in found.items()}


def slug(names: Iterable[object], taken: Collection[str] = ()) -> str:
    """Lower-case letters, digits and hyphens that say these names; a number tells apart what would be the same."""
    plain = "-".join(re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-") or "x" for name in names)
    return next(text for i in range(len(taken) + 1) if (text := f"{plain}-{i + 1}" if i else plain) not in taken)


def thumbnails(store: Store, key: str, side: int, is_blurred: bool) -> Iterator[tuple[str, str]]:
    """(prompt id, data URI) of the first image of each prompt of a gallery."""
    try:
        path = store.path(key) / "images.parquet"
        rows = pq.read_table(path, columns=["image", "prompt_id", "number"], filters=[("number", "=", 0)]).to_pylist()
    except UNREADABLE:
        return
    for row in rows:
        try:
            yield row["prompt_id"], thumbnail(row["image"]["bytes"], side, is_blurred)
        except UNREADABLE:
            continue


def thumbnail(png: bytes, side: int, is_blurred: bool) -> str:
    """A WebP data URI, at most `side` pixels wide and high."""
    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    if is_blurred:
        image = image.filter(ImageFilter.GaussianBlur(max(image.size) * BLUR))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def verdict(value: float | None) -> Verdict:
    """What a stored score says."""
    if value is None or math.isnan(value):
        return "unknown"
    return "seen" if value >= 0.5 else "absent"


def defended(plan: Plan) -> list[tuple[str, str]]:
    """Each concept and defense but the control, in the plan's order."""
    return list(dict.fromkeys((c.concept.called, c.defense) for c in plan.cells if c.defense != CONTROL))
