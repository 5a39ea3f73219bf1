"""What papers claim, beside what a run measured: claim by claim, with the interval, and whether it holds.

A claim is checked in one of three ways, over the tables of one board:

bound   a number of one defense is at most or at least a limit, for every concept
gap     a number of one defense is below (or above) that of another, in paired differences at equal attack and budget
ratio   presence of one defense is at most a share of another's under one attack, at its largest budget

`holds` is `yes` if the whole interval keeps to the limit, `no` if none of it does, and `undecided` where it covers the
limit or nothing could be measured. A board speaks of its own concepts: gaps and ratios go by the intervals and p-values
in which concepts are not drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from leaderboards.board import Board
from leaderboards.cells import DOUBT
from leaderboards.intervals import EQUAL, holm
from leaderboards.row import ONE_RUN

COLUMNS = [
    "claim",
    "defense",
    "statement",
    "source",
    "measured",
    "value",
    "ci_low",
    "ci_high",
    "limit",
    "holds",
    "flags",
]
ALPHA = 0.05
RUN = ["seed", "defense_seed"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
        claim: its name.
        defense: the defense it is about.
        statement: what the paper says.
        source: where.
        check: how it is checked here.
        number: for bound and gap, a number of the cells or `presence`.
        against: the other defense of a gap or ratio; of a bound, whose number is subtracted.
        attack: the attack, for presence; empty for what is measured before one.
        budget: of a bound on presence after an attack, 0: the largest there is; of a gap, 0: all there are.
        at_most: the limit, if it is one from above.
        at_least: the limit, if it is one from below.
        below: for a gap: is the number to be smaller than the other's?
    """

    claim: str
    defense: str
    statement: str
    source: str
    check: Literal["bound", "gap", "ratio"]
    number: str = "presence"
    against: str = ""
    attack: str = ""
    budget: int = 0
    at_most: float | None = None
    at_least: float | None = None
    below: bool = True

    @property
    def limit(self) -> float | None:
        """The limit, from above or below."""
        return self.at_most if self.at_most is not None else self.at_least


def judge(board: Board, claims: Sequence[Claim]) -> pd.DataFrame:
    """One row for each measurement that bears on a claim."""
    checks = {"bound": bound, "gap": gap, "ratio": ratio}
    rows = [row for claim in claims for row in (list(checks[claim.check](board, claim)) or [unmeasured(board, claim)])]
    table = pd.DataFrame(rows, columns=COLUMNS)
    runs = {claim.claim: attack_runs(board.cells, claim) for claim in claims}
    table["flags"] = pd.Series([ONE_RUN if runs[name] == 1 else None for name in table["claim"]], dtype=object)
    return table


def attack_runs(cells: pd.DataFrame, claim: Claim) -> int:
    """Of how many attack runs a claim speaks; 0 if it is about what was before any attack."""
    after = (cells["attack"] == claim.attack) & (cells["budget"] > 0) & cells["defense"].isin([claim.defense])
    return len(cells.loc[after, RUN].drop_duplicates())


def line(claim: Claim, measured: str, holds: str, numbers: Mapping[str, float]) -> dict[str, Any]:
    """One row of the table."""
    said = {name: getattr(claim, name) for name in ("claim", "defense", "statement", "source", "limit")}
    return said | dict(numbers) | {"measured": measured, "holds": holds}


def unmeasured(board: Board, claim: Claim) -> dict[str, Any]:
    """The row of a claim on which the run says nothing, with what became of the cells that it needs."""
    missing = {name: float("nan") for name in ("value", "ci_low", "ci_high")}
    cells = board.cells[board.cells["defense"].isin([claim.defense, claim.against]) & (board.cells["status"] != "ok")]
    if claim.attack:
        cells = cells[(cells["attack"] == claim.attack) & (cells["budget"] > 0)]
    points = cells.drop_duplicates(["defense", "attack", "budget", "status"])[["defense", "attack", "budget", "status"]]
    found = ", ".join(f"{row.defense} {row.status} at {row.attack}@{row.budget}" for row in points.itertuples())
    return line(claim, f"no cells to compare: {found}" if found else "not measured in this run", "undecided", missing)


def verdict(claim: Claim, value: float, low: float, high: float) -> str:
    """`yes` if the whole interval keeps to the limit, `no` if none of it does, `undecided` between."""
    if pd.isna([value, low, high]).any() or claim.limit is None:
        return "undecided"
    if claim.at_most is not None:
        return "yes" if high <= claim.at_most else "undecided" if low <= claim.at_most else "no"
    return "yes" if low >= claim.limit else "undecided" if high >= claim.limit else "no"


def bound(board: Board, claim: Claim) -> Iterator[dict[str, Any]]:
    """A row for each concept. A difference to another defense has no interval here: the cells are paired by prompt
    only in `comparisons`, so its interval is the conservative one, from both ends."""
    own, other = of_cells(board.cells, claim, claim.defense), None
    if claim.against:
        other = of_cells(board.cells, claim, claim.against).set_index(["concept", *RUN])
    for row in own.to_dict("records"):
        numbers = {name: float(row[name]) for name in ("value", "ci_low", "ci_high")}
        text = f"{claim.number} of {claim.defense}, {row['concept']}"
        if claim.attack:
            text += f", {claim.attack}@{row['budget']}"
        status = {row["status"]}
        if other is not None:
            run = (row["concept"], *(row[name] for name in RUN))
            if run not in other.index:
                continue
            base = other.loc[run]
            numbers = {
                "value": numbers["value"] - float(base["value"]),
                "ci_low": numbers["ci_low"] - float(base["ci_high"]),
                "ci_high": numbers["ci_high"] - float(base["ci_low"]),
            }
            text += f", less that of {claim.against}"
            status.add(base["status"])
        status |= doubts(board.cells[board.cells["concept"] == row["concept"]], claim, row["budget"])
        holds = verdict(claim, numbers["value"], numbers["ci_low"], numbers["ci_high"])
        yield line(claim, *unless(text, holds, status - {"ok"}), numbers)


def of_cells(cells: pd.DataFrame, claim: Claim, defense: str) -> pd.DataFrame:
    """The rows of a claim's number for a defense, one for each concept and attack seed."""
    is_after = bool(claim.attack)
    chosen = cells[(cells["defense"] == defense) & (cells["number"] == claim.number)]
    chosen = chosen[chosen["attack"] == (claim.attack or "none")]
    if is_after and len(chosen):
        chosen = chosen[chosen["budget"] == (claim.budget or chosen["budget"].max())]
    return chosen.drop_duplicates(["concept", *RUN]).sort_values(["concept", *RUN])


def gap(board: Board, claim: Claim) -> Iterator[dict[str, Any]]:
    """A row for each budget, from the paired differences; `yes` where p is below 0.05 in the right direction.

    p is corrected for the pairs of defenses, and for the budgets that the claim is asked at.
    """
    table = board.comparisons
    for a, b, sign in ((claim.defense, claim.against, 1), (claim.against, claim.defense, -1)):
        rows = table[(table["defense_a"] == a) & (table["defense_b"] == b) & (table["number"] == claim.number)]
        if claim.attack:
            rows = rows[(rows["attack"] == claim.attack) & (rows["budget"] > 0)]
        if claim.budget:
            rows = rows[rows["budget"] == claim.budget]
        rows = rows.assign(p=holm(rows["p_fixed_holm"].to_numpy(dtype=np.float64)))
        for row in rows.sort_values("budget").to_dict("records"):
            ends = sorted((sign * float(row["fixed_low"]), sign * float(row["fixed_high"])))
            numbers = {"value": sign * float(row["value"]), "ci_low": ends[0], "ci_high": ends[1]}
            text = f"{claim.number} of {claim.defense} less that of {claim.against}"
            text += f", {row['attack']}@{row['budget']}" if claim.attack else ""
            holds = direction(claim, numbers["value"], float(row["p"]))
            broken = doubts(board.cells, claim, row["budget"]) if claim.attack else set[str]()
            yield line(claim, *unless(text, holds, broken), numbers)


def unless(text: str, holds: str, broken: set[str]) -> tuple[str, str]:
    """What was measured and whether it holds; what collapsed images do not show says nothing about a defense."""
    return (f"{text} ({', '.join(sorted(broken))})", "undecided") if broken else (text, holds)


def doubts(cells: pd.DataFrame, claim: Claim, budget: int) -> set[str]:
    """The doubt about the images of a claim's cells at a budget, of either defense, if there is one."""
    of_claim = cells["defense"].isin([claim.defense, claim.against]) & (cells["attack"] == (claim.attack or "none"))
    return {DOUBT} & set(cells.loc[of_claim & (cells["budget"] == budget), "flag"])


def direction(claim: Claim, value: float, p: float) -> str:
    """Which way a paired difference points, if it is one."""
    if pd.isna(p) or p >= ALPHA or abs(value) < EQUAL:
        return "undecided"
    return "yes" if (value < 0) == claim.below else "no"


def ratio(board: Board, claim: Claim) -> Iterator[dict[str, Any]]:
    """One row: the quotient of two presences with the conservative interval, from both ends of both intervals."""
    curves = board.curves
    points = []
    for defense in (claim.defense, claim.against):
        rows = curves[
            (curves["defense"] == defense) & (curves["attack"] == claim.attack) & (curves["concept"] == "all")
        ]
        if rows.empty:
            return
        points.append(rows.sort_values("budget").iloc[-1])
    a, b = points
    numbers = {
        "value": quotient(a["presence"], b["presence"]),
        "ci_low": quotient(a["fixed_low"], b["fixed_high"]),
        "ci_high": quotient(a["fixed_high"], b["fixed_low"]),
    }
    text = f"presence of {claim.defense} / that of {claim.against}, {claim.attack}@{a['budget']}"
    holds = verdict(claim, numbers["value"], numbers["ci_low"], numbers["ci_high"])
    broken = doubts(board.cells, claim, a["budget"]) | doubts(board.cells, claim, b["budget"])
    yield line(claim, *unless(text, holds, broken), numbers)


def quotient(a: float, b: float) -> float:
    """a / b, missing where b is 0."""
    return float(a) / float(b) if b else float("nan")
