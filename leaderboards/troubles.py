"""What weakens the numbers of a board, in few lines: flags by what they say, cells by what became of them and where.

Reasons and flags carry numbers of their own cells, so they are grouped without them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from leaderboards.cells import DOUBT
from leaderboards.evidence import KEY

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?")
COUNTED = re.compile(r"^(?P<flag>.+) in (?P<count>\d+ of \d+ cells)$")
IN_DOUBT = "in doubt"
FEW = 3  # defenses that are named; of more it is said how many


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Cells of one defense under one attack that share a status. `reasons` counts those that differ in their words."""

    status: str
    defense: str
    attack: str
    reason: str
    reasons: int
    cells: tuple[str, ...]

    @property
    def told(self) -> str:
        """The reason, or one of several."""
        more = self.reasons - 1
        return self.reason + (f" (and {more} other reason{'s' if more > 1 else ''})" if more else "")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag, and the rows that carry it: each with its count of cells, where it has one."""

    text: str
    rows: dict[int, str]


def troubles(cells: pd.DataFrame) -> list[Trouble]:
    """Cells that are not ok or in doubt, by status, defense and attack; the most cells come first."""
    bad = cells[cells["status"] != "ok"].drop_duplicates(KEY)
    doubted = cells[cells["flag"] == DOUBT].drop_duplicates(KEY).assign(status=IN_DOUBT, reason=DOUBT)
    every = pd.concat([bad, doubted])
    every = every.assign(reason=every["reason"].fillna("").replace("", "no reason given"))
    found = []
    for (status, defense, attack), part in every.groupby(["status", "defense", "attack"], sort=False):
        kinds = Counter(NUMBER.sub("#", reason) for reason in part["reason"])
        most = kinds.most_common(1)[0][0]
        said = [reason for reason in part["reason"] if NUMBER.sub("#", reason) == most]
        found.append(
            Trouble(
                status=str(status),
                defense=str(defense),
                attack=str(attack),
                reason=said[0] if len(set(said)) == 1 else f"for example: {said[0]}",
                reasons=len(kinds),
                cells=tuple(f"{c.concept}/{c.defense}/{c.attack}@{c.budget}#{c.seed}" for c in part.itertuples()),
            )
        )
    return sorted(found, key=lambda trouble: -len(trouble.cells))


def joined(found: Sequence[Trouble]) -> list[Trouble]:
    """Troubles of several defenses under one attack and for one reason as one; the most cells come first."""
    groups: dict[tuple[str, str, str], list[Trouble]] = {}
    for trouble in found:
        groups.setdefault((trouble.status, trouble.attack, NUMBER.sub("#", trouble.told)), []).append(trouble)
    every = []
    for group in groups.values():
        names = list(dict.fromkeys(trouble.defense for trouble in group))
        alike = {trouble.told for trouble in group}
        reason = group[0].reason if len(alike) == 1 else f"for example: {group[0].reason.removeprefix('for example: ')}"
        every.append(
            replace(
                group[0],
                defense=", ".join(names) if len(names) <= FEW else f"{len(names)} defenses",
                reason=reason,
                cells=tuple(cell for trouble in group for cell in trouble.cells),
            )
        )
    return sorted(every, key=lambda trouble: -len(trouble.cells))


def flags(leaderboard: pd.DataFrame) -> list[Flag]:
    """Each flag of a leaderboard once, with the positions of the rows that carry it; the commonest come first."""
    found: dict[str, dict[int, str]] = {}
    for at, text in enumerate(leaderboard.get("flags", pd.Series(dtype=object))):
        for flag in [] if pd.isna(text) else str(text).split("; "):
            counted = COUNTED.match(flag)
            found.setdefault(counted["flag"] if counted else flag, {})[at] = counted["count"] if counted else ""
    return sorted((Flag(text=text, rows=rows) for text, rows in found.items()), key=lambda flag: -len(flag.rows))


def carriers(leaderboard: pd.DataFrame, flag: Flag) -> str:
    """The rows of a flag for people: `all rows`, or their defenses, each with its count of cells."""
    if len(flag.rows) == len(leaderboard) > 1 and not any(flag.rows.values()):
        return "all rows"
    names = row_names(leaderboard)
    return ", ".join(f"{names[at]}{f' ({count})' if count else ''}" for at, count in flag.rows.items())


def row_names(leaderboard: pd.DataFrame) -> list[str]:
    """The defense of each row, with model and scenario where the board has several."""
    several = leaderboard[["model", "scenario"]].drop_duplicates().shape[0] > 1
    return [
        f"{row['defense']} ({row['model']}, {row['scenario']})" if several else str(row["defense"])
        for row in leaderboard.to_dict("records")
    ]


def judges(leaderboard: pd.DataFrame) -> list[str]:
    """Every judge that a presence on this board is due to."""
    return list(dict.fromkeys(str(judge) for judge in leaderboard["judge"].dropna()))
