"""Thumbnails beside each other: base, defended and attacked at each budget, from the same seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from benchmark.plan.removal import LABEL
from benchmark.results.report.pictures import CONTROL, FEW, LARGE_SIDE, SIDE, Picture, Pictures, defended
from benchmark.types import Prompt

PROMPTS, MOST = 16, 2000  # prompts in a grid; thumbnails in a page
OPEN = 4  # prompts of a grid that are shown at once

Arms = list[tuple[str, int]]  # attacks with a budget


@dataclass(frozen=True, kw_only=True)
class Line:
    """The pictures of one model from one prompt and seed: unattacked, then under each attack and budget."""

    who: str
    pictures: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt: how the page calls it, and the base's and the defended model's pictures."""

    prompt: str
    lines: list[Line]

    @property
    def came_back(self) -> bool:
        """True where the base shows the concept, the defended model does not, and an attacked one does again."""
        (base, *_), (before, *after) = (line.pictures for line in self.lines)
        return (base.verdict, before.verdict) == ("seen", "absent") and any(p.verdict == "seen" for p in after)


@dataclass(frozen=True, kw_only=True)
class Block:
    """The grid of one concept and defense. `groups` are attacks with their budgets; `total` counts the prompts."""

    concept: str
    defense: str
    id: str
    is_blurred: bool
    groups: list[tuple[str, list[int]]]
    rows: list[Row]
    total: int
    left_out: list[str]


def blocks(pictures: Pictures, cells: pd.DataFrame, most: int = MOST) -> list[Block]:
    """A grid for each concept and defense, of at most `most` thumbnails in all.

    First there are fewer prompts, then fewer attacks: those with the largest presence stay. Few pictures are large.
    """
    pairs = defended(pictures.plan)
    if not pairs:
        return []
    share = most // len(pairs)
    columns = max(1 + sum(map(len, pictures.arms(*pair).values())) for pair in pairs)
    rows = max(1, min(PROMPTS, share // (2 * columns)))
    side = LARGE_SIDE if 2 * rows * columns * len(pairs) <= FEW else SIDE
    return [block(pictures, pair, cells, (rows, max(1, share // (2 * rows) - 1)), side) for pair in pairs]


def block(
    pictures: Pictures, pair: tuple[str, str], cells: pd.DataFrame, size: tuple[int, int], side: int = SIDE
) -> Block:
    """One grid: `size` is its number of prompts and of attacked columns at most, of at least one attack."""
    (concept, defense), (rows, columns) = pair, size
    arms = pictures.arms(concept, defense)
    groups: list[tuple[str, list[int]]] = []
    for attack in by_presence(cells, concept, defense, arms):
        if not groups or sum(len(budgets) for _, budgets in groups) + len(arms[attack]) <= columns:
            groups.append((attack, arms[attack]))
    start = next(c for key, c in pictures.at.items() if key[:2] == (concept, defense))
    named = [(a, b) for a, budgets in groups for b in budgets]
    prompts = pictures.prompts(start)
    anchor = pictures.slug("images", concept, defense)
    found = [
        Row(
            prompt=name,
            lines=[line(pictures, pair, who, (i + 1, prompt, name), named, side) for who in (CONTROL, defense)],
        )
        for i, (prompt, name) in enumerate(prompts[:rows])
    ]
    return Block(
        concept=concept,
        defense=defense,
        id=anchor,
        is_blurred=start.concept.kind == "nsfw",
        groups=groups,
        rows=found,
        total=len(prompts),
        left_out=[attack for attack in arms if attack not in dict(groups)],
    )


def line(
    pictures: Pictures, pair: tuple[str, str], who: str, prompt: tuple[int, Prompt, str], arms: Arms, side: int
) -> Line:
    """The pictures of one model from one prompt, (number, prompt, what it is called): unattacked, then each arm.

    Where a part is put back from the base, the base is the base.
    """
    (concept, defense), (number, asked, name) = pair, prompt
    start = next(c for key, c in pictures.at.items() if key[:2] == (concept, who) and key[3] == 0)
    cells = [start] + [
        start if (who, attack) == (CONTROL, LABEL) else pictures.at[concept, who, attack, budget]
        for attack, budget in arms
    ]
    places = [("none", 0), *arms]
    found = [
        pictures.picture(
            cell, asked, name, side, pictures.slug("image", concept, defense, number, side_of(who), attack, budget)
        )
        for cell, (attack, budget) in zip(cells, places, strict=True)
    ]
    return Line(who="base" if who == CONTROL else who, pictures=found)


def side_of(who: str) -> str:
    """Which of the two models of a grid."""
    return "base" if who == CONTROL else "defended"


def by_presence(cells: pd.DataFrame, concept: str, defense: str, attacks: Iterable[str]) -> list[str]:
    """Attacks by their largest presence, the largest first; the plan's order among equals."""
    own = cells[(cells["concept"] == concept) & (cells["defense"] == defense) & (cells["number"] == "presence_after")]
    reached = own.groupby("attack")["value"].max().fillna(-1).to_dict()
    return sorted(attacks, key=lambda attack: -reached.get(attack, -1))
