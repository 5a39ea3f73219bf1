"""Stored images -> thumbnails beside each other: base, defended and attacked at each budget, from the same seeds.

Reads parquet with pyarrow and Pillow, so that a report needs no torch. What cannot be read becomes an empty picture
that says so. In an NSFW suite every picture is blurred in its pixels, and prompts are numbered, not quoted.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter, UnidentifiedImageError

from benchmark.plan import Cell, Plan
from benchmark.store import Store
from benchmark.types import Prompt

CONTROL = "none"
JUDGE = ("presence", "concept")
SIDE, LARGE_SIDE = 96, 192  # pixels; smaller images stay as they are
PROMPTS, MOST = 4, 2000  # prompts in a grid; thumbnails in a page
BLUR = 1 / 8  # radius, as a share of the side
UNREADABLE = (OSError, SyntaxError, ValueError, KeyError, pa.ArrowException, UnidentifiedImageError)

Verdict = Literal["seen", "absent", "unknown"]
WORDS: dict[Verdict, str] = {"seen": "concept seen", "absent": "concept not seen", "unknown": "not judged"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One thumbnail: `source` is a data URI, empty where there is no readable image."""

    source: str
    alt: str
    verdict: Verdict
    budget: int
    is_blurred: bool = False

    @property
    def words(self) -> str:
        """What the judge said."""
        return WORDS[self.verdict]


@dataclass(frozen=True, kw_only=True)
class Line:
    """The pictures of one model from one prompt and seed: unattacked, then under each attack and budget."""

    who: str
    pictures: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Block:
    """The grid of one concept and defense. `groups` are attacks with their budgets; `rows` a prompt and two lines."""

    concept: str
    defense: str
    is_blurred: bool
    groups: list[tuple[str, list[int]]]
    rows: list[tuple[str, list[Line]]]
    left_out: list[str]


@dataclass(frozen=True, kw_only=True)
class Story:
    """The picture at the top: one prompt and seed, from the base through the defense to the attack.

    erased: images without the concept before the attack, of `pairs`; returned: those that have it at the end.
    """

    concept: str
    defense: str
    attack: str
    prompt: str
    base: Picture
    steps: list[Picture]
    pairs: int
    erased: int
    returned: int
    budget: int

    @property
    def title(self) -> str:
        """What happened, in a few words."""
        if self.returned:
            return "The concept comes back"
        return "The concept stayed away" if self.erased else "The defense did not remove the concept"


@dataclass
class Pictures:
    """Thumbnails and verdicts by cell, each gallery read once."""

    plan: Plan
    store: Store
    at: dict[tuple[str, str, str, int], Cell] = field(init=False)
    images: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    scored: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = min((cell.seed for cell in self.plan.cells), default=0)
        cells = [cell for cell in self.plan.cells if cell.seed == first]
        self.at = {(cell.concept.name, cell.defense, cell.attack, cell.budget): cell for cell in cells}

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

    def picture(self, cell: Cell, prompt: Prompt, name: str, side: int = SIDE) -> Picture:
        """The first image that a cell has of a prompt."""
        is_blurred = cell.concept.kind == "nsfw"
        source = self.read(cell.images["concept"], side, is_blurred).get(prompt.id, "")
        found = self.judged(cell).get(prompt.id, "unknown")
        attack = f"{cell.attack}, budget {cell.budget}" if cell.budget else "no attack"
        who = "base" if cell.defense == CONTROL else cell.defense
        missing = "" if source else "not kept; " if is_blurred else "no readable image; "
        blurred = "blurred; " if is_blurred else ""
        alt = f"{missing}{blurred}{name}; model: {who}; attack: {attack}; judge: {WORDS[found]}"
        return Picture(source=source, alt=alt, verdict=found, budget=cell.budget, is_blurred=is_blurred)

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
    return list(dict.fromkeys((c.concept.name, c.defense) for c in plan.cells if c.defense != CONTROL))


def blocks(pictures: Pictures, cells: pd.DataFrame, most: int = MOST) -> list[Block]:
    """A grid for each concept and defense, of at most `most` thumbnails in all.

    First there are fewer prompts, then fewer attacks: those with the largest presence stay.
    """
    pairs = defended(pictures.plan)
    if not pairs:
        return []
    share = most // len(pairs)
    columns = max(1 + sum(map(len, pictures.arms(*pair).values())) for pair in pairs)
    rows = max(1, min(PROMPTS, share // (2 * columns)))
    return [block(pictures, *pair, cells, rows, max(1, share // (2 * rows) - 1)) for pair in pairs]


def block(pictures: Pictures, concept: str, defense: str, cells: pd.DataFrame, rows: int, columns: int) -> Block:
    """One grid of `rows` prompts and at most `columns` attacked columns; at least one attack."""
    arms = pictures.arms(concept, defense)
    groups: list[tuple[str, list[int]]] = []
    for attack in by_presence(cells, concept, defense, arms):
        if not groups or sum(len(budgets) for _, budgets in groups) + len(arms[attack]) <= columns:
            groups.append((attack, arms[attack]))
    start = next(c for key, c in pictures.at.items() if key[:2] == (concept, defense))
    named = [(a, b) for a, budgets in groups for b in budgets]
    prompts = pictures.prompts(start)[:rows]
    lines = [
        (name, [line(pictures, concept, who, prompt, name, named) for who in (CONTROL, defense)])
        for prompt, name in prompts
    ]
    left = [attack for attack in arms if attack not in dict(groups)]
    is_blurred = start.concept.kind == "nsfw"
    return Block(concept=concept, defense=defense, is_blurred=is_blurred, groups=groups, rows=lines, left_out=left)


def line(pictures: Pictures, concept: str, who: str, prompt: Prompt, name: str, arms: list[tuple[str, int]]) -> Line:
    """The pictures of one model: unattacked, then each arm."""
    start = next(c for key, c in pictures.at.items() if key[:2] == (concept, who) and key[3] == 0)
    cells = [start, *(pictures.at[concept, who, attack, budget] for attack, budget in arms)]
    found = [pictures.picture(cell, prompt, name) for cell in cells]
    return Line(who="base" if who == CONTROL else who, pictures=found)


def by_presence(cells: pd.DataFrame, concept: str, defense: str, attacks: Iterable[str]) -> list[str]:
    """Attacks by their largest presence, the largest first; the plan's order among equals."""
    own = cells[(cells["concept"] == concept) & (cells["defense"] == defense) & (cells["number"] == "presence_after")]
    reached = own.groupby("attack")["value"].max().fillna(-1).to_dict()
    return sorted(attacks, key=lambda attack: -reached.get(attack, -1))


def story(pictures: Pictures, cells: pd.DataFrame) -> Story | None:
    """The pair of models in which the concept comes back most often; None if nothing was attacked.

    Of the prompts in which the base draws it, the defended model does not and the attacked one does, it is the one of
    which the judge is surest.
    """
    ok = set(cells[cells["status"] == "ok"][["concept", "defense", "attack"]].itertuples(index=False, name=None))
    best: tuple[tuple[bool, int, int], tuple[str, str, str]] | None = None
    for concept, defense in defended(pictures.plan):
        for attack in pictures.arms(concept, defense):
            found = verdicts(pictures, concept, defense, attack)
            score = ((concept, defense, attack) in ok, *came_back(found))
            if found and (best is None or score > best[0]):
                best = score, (concept, defense, attack)
    return tell(pictures, *best[1]) if best else None


def verdicts(
    pictures: Pictures, concept: str, defense: str, attack: str
) -> dict[str, tuple[Verdict, Verdict, Verdict]]:
    """The verdicts on base, defended and most attacked images of each prompt id that has all three."""
    last = pictures.arms(concept, defense)[attack][-1]
    keys = [(concept, CONTROL, attack, 0), (concept, defense, attack, 0), (concept, defense, attack, last)]
    base, before, after = (pictures.judged(pictures.at[key]) for key in keys)
    return {p: (base[p], before[p], after[p]) for p in before if p in base and p in after}


def came_back(found: dict[str, tuple[Verdict, Verdict, Verdict]]) -> tuple[int, int]:
    """How many images have the concept again, and how many had lost it."""
    gone = [after for _, before, after in found.values() if before == "absent"]
    return gone.count("seen"), len(gone)


def tell(pictures: Pictures, concept: str, defense: str, attack: str) -> Story:
    """The story of one defense under one attack."""
    found, budgets = verdicts(pictures, concept, defense, attack), pictures.arms(concept, defense)[attack]
    start = pictures.at[concept, defense, attack, 0]
    wanted: list[tuple[Verdict, ...]] = [("seen", "absent", "seen"), ("absent", "absent", "seen")]
    keys = [(concept, CONTROL, attack, 0), (concept, defense, attack, 0), (concept, defense, attack, budgets[-1])]
    doubts = [pictures.doubt(pictures.at[key]) for key in keys]
    judged = [p for p in found if "unknown" not in found[p]]
    surest = sorted(judged, key=lambda p: sum(doubt.get(p, 0.0) for doubt in doubts))
    order = [p for verdicts in wanted for p in surest if found[p] == verdicts]
    prompt, name = next(
        ((p, name) for chosen in order for p, name in pictures.prompts(start) if p.id == chosen),
        pictures.prompts(start)[0],
    )
    cells = [pictures.at[concept, defense, attack, budget] for budget in (0, *budgets)]
    returned, erased = came_back(found)
    return Story(
        concept=concept,
        defense=defense,
        attack=attack,
        prompt=name,
        base=pictures.picture(pictures.at[concept, CONTROL, attack, 0], prompt, name, LARGE_SIDE),
        steps=[pictures.picture(cell, prompt, name, LARGE_SIDE) for cell in cells],
        pairs=len(found),
        erased=erased,
        returned=returned,
        budget=budgets[-1],
    )
