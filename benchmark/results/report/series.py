"""What the figures of a board show, and how each defense looks in them; nothing is drawn here.

Colours are those of Okabe and Ito (2008), then four of Tol's muted ones; where they begin anew, marker and dash differ.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmark.config.entries import Entry
from benchmark.plan import Plan
from leaderboards.board import CONTROL, Board

INK, MUTED, LINE = "#101112", "#737578", "#dcdddf"
SERIES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6d31",
    "#882255",
    "#332288",
    "#117733",
    "#999933",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {c: f"--s{i}" for i, c in enumerate(SERIES)}
WORST = ("defense", "worst_presence", "worst_presence_low", "worst_presence_high")
UTILITIES = {
    "retained_accuracy": "retained accuracy",
    "clip_score": "CLIP score, safe prompts",
    "benign_adaptation": "benign adaptation",
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a defense is drawn everywhere."""

    color: str
    marker: str
    dash: Any

    @property
    def variable(self) -> str:
        """The CSS variable of its colour."""
        return VARIABLES[self.color]


def unit(attack: Entry) -> str:
    """What the budget of an attack counts; that of one which follows another counts both."""
    first = unit(attack.after) if attack.after else ""
    own = str(attack.method.unit)
    return f"{first}, then {own}" if first and first != own else own


def units(plan: Plan) -> dict[str, str]:
    """What the budget of each attack of a plan counts."""
    return {entry.label: unit(entry) for entry in plan.config.attacks}


def looks(board: Board) -> dict[str, Look]:
    """A look for each defense but the control, in the order of the leaderboard."""
    names = [name for name in dict.fromkeys(board.leaderboard["defense"]) if name != CONTROL]
    return {
        name: Look(
            color=SERIES[i % len(SERIES)],
            marker=MARKERS[(i + i // len(SERIES)) % len(MARKERS)],
            dash=DASHES[i // len(SERIES) % len(DASHES)],
        )
        for i, name in enumerate(names)
    }


def panels(board: Board) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The curves of each model, scenario, concept and attack that has budgets; `all` is there with two concepts."""
    found = []
    names = ["model", "scenario", "concept", "attack"]
    for key, part in board.curves.groupby(names, sort=False):
        named = dict(zip(names, key, strict=True))
        own = board.curves[(board.curves["model"] == named["model"]) & (board.curves["scenario"] == named["scenario"])]
        single = own["concept"].nunique() <= 2  # the concept, and `all`
        if part["budget"].max() > 0 and part["presence"].notna().any() and not (named["concept"] == "all" and single):
            found.append((named, part))
    return sorted(found, key=lambda pair: pair[0]["concept"] != "all")


def interval(value: float, low: float | None, high: float | None) -> str:
    """`0.50 [0.20, 0.80]`; without the interval where it is missing."""
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return f"{value:.2f}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def utilities(board: Board) -> list[str]:
    """The columns of utility that at least one defense has together with a worst presence."""
    rows = board.leaderboard[board.leaderboard["worst_presence"].notna()]
    return [name for name in UTILITIES if name in rows and rows[name].notna().any()]
