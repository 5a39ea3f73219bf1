"""The board's tables as a page shows them: which columns, in which words, sorted by what."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leaderboards.board import CONTROL, Board

DASH = "\N{EN DASH}"  # a missing number
CELL = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
SHOWN = {
    "rank": "rank",
    "defense": "defense",
    "model": "model",
    "scenario": "scenario",
    "titer": "titer",
    "worst_presence": "worst presence",
    "worst_attack": "worst attack",
    "presence_before": "before attack",
    "retained_accuracy": "retained",
    "clip_score": "CLIP score",
    "kid": "KID",
    "fid": "FID",
    "lpips": "LPIPS",
    "cmmd": "CMMD",
    "benign_adaptation": "benign adaptation",
    "status": "status",
    "fidelity": "fidelity",
    "concepts": "concepts",
    "images": "images",
    "defend_seconds": "seconds",
    "peak_memory_mib": "MiB",
    "effort_area": "effort area",
}
MEASURED = {
    "presence_before": "before",
    "presence_after": "after",
    "ceiling": "ceiling",
    "recovered": "recovered",
    "reactivation_rate": "reactivation",
    "clip_score": "CLIP score",
}
SHARES = ("presence", "worst", "ceiling", "recovered", "reactivation", "retained", "effort", "benign")
ALWAYS = ("rank", "defense", "titer", "worst_presence", "worst_attack", "presence_before", "status")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a table: its text, what it is sorted by, and, for a share with an interval, where to draw it."""

    text: str
    order: float | str
    span: tuple[float, float, float] | None = None
    is_number: bool = False
    badge: str = ""


def is_missing(value: Any) -> bool:
    """True for None, NaN and NA."""
    return bool(pd.isna(value))


def number(value: Any, *, share: bool) -> str:
    """A number for people: two decimals for a share, else three digits; a dash where it is missing."""
    if is_missing(value):
        return DASH
    if isinstance(value, int) or (float(value).is_integer() and not share):
        return f"{int(value):,}"
    return f"{value:.2f}" if share else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def field(name: str, value: Any, low: Any = None, high: Any = None) -> Field:
    """One field of a table by the name of its column."""
    if name == "titer":
        return titer_field(value)
    if name == "status":
        return Field(text=str(value), order=str(value), badge="ok" if value == "ok" else "bad")
    if isinstance(value, str) or value is None:
        return Field(text=value or DASH, order=value or "")
    share = name.startswith(SHARES)
    text, order = number(value, share=share), "" if is_missing(value) else float(value)
    if is_missing(value) or low is None or is_missing(low) or is_missing(high):
        return Field(text=text, order=order, is_number=True)
    drawn = (clip(low), clip(value), clip(high)) if share else None
    bounds = f"[{number(low, share=share)}, {number(high, share=share)}]"
    return Field(text=f"{text} {bounds}", order=order, span=drawn, is_number=True)


def clip(value: float) -> float:
    """A share in percent, within what is drawn."""
    return round(100 * min(1.0, max(0.0, float(value))), 1)


def titer_field(value: Any) -> Field:
    """A titer as written; a censored one sorts just after the same number."""
    if is_missing(value):
        return Field(text=DASH, order="", is_number=True)
    text = str(value)
    bound = float(text.removeprefix(">="))
    return Field(text=text.replace(">=", "≥ "), order=bound + 0.5 * text.startswith(">="), is_number=True)


def leaderboard(board: Board) -> dict[str, Any]:
    """Titles and rows; columns that say nothing are left out."""
    rows = board.leaderboard
    further = {name: name for name in map(str, rows) if name not in SHOWN and is_extra(rows, name)}
    names = {n: t for n, t in (SHOWN | further).items() if n in rows and (n in ALWAYS or is_told(rows, n))}
    lines = [[field(name, row[name], *bounds(row, name)) for name in names] for row in rows.to_dict("records")]
    controls = [row == CONTROL for row in rows["defense"]]
    return {"titles": list(names.values()), "rows": list(zip(controls, lines, strict=True)), "filters": filters(names)}


def comparisons(board: Board) -> list[dict[str, Any]]:
    """Paired differences of the worst presence between each two defenses."""
    rows = board.comparisons[board.comparisons["number"] == "worst_presence"]
    several = board.leaderboard[["model", "scenario"]].drop_duplicates().shape[0] > 1
    return [
        {
            "names": f"{row['defense_a']} minus {row['defense_b']}" + f" ({row['model']}, {row['scenario']})" * several,
            "value": field("worst_difference", row["value"], row["ci_low"], row["ci_high"]).text,
            "p": number(row["p_holm"], share=False),
            "detectable": number(row["detectable"], share=True),
        }
        for row in rows.to_dict("records")
    ]


def is_extra(rows: pd.DataFrame, name: str) -> bool:
    """True for a distance that has a column of its own."""
    hidden = ("worst_presence_low", "worst_presence_high", "toy", "judge", "attack_seeds")
    return name not in hidden and pd.api.types.is_numeric_dtype(rows[name])


def is_told(rows: pd.DataFrame, name: str) -> bool:
    """False for a column that says nothing: all is missing, or the same name in each row."""
    if name in ("model", "scenario", "concepts"):
        return rows[name].nunique() > 1
    return bool(rows[name].notna().any())


def bounds(row: Mapping[Any, Any], name: str) -> tuple[Any, Any]:
    """The interval that stands beside a number of the leaderboard."""
    return row.get(f"{name}_low"), row.get(f"{name}_high")


def filters(names: Iterable[str]) -> list[tuple[int, str]]:
    """Columns, by position, that a page offers to choose from."""
    wanted = ("model", "scenario", "concept", "defense", "attack", "status")
    return [(i, name) for i, name in enumerate(names) if name in wanted]


def cells(board: Board) -> dict[str, Any]:
    """One line for each cell: who, the numbers with their intervals, and what became of it."""
    names = [name for name in CELL if name not in ("model", "scenario") or board.cells[name].nunique() > 1]
    present = set(board.cells["number"])
    numbers = {n: t for n, t in MEASURED.items() if n in present}
    lines, parts = [], dict[tuple[Any, ...], dict[str, dict[Any, Any]]]()
    for row in board.cells.to_dict("records"):  # picking rows of a frame one by one takes seconds on a large board
        parts.setdefault(tuple(row[name] for name in CELL), {})[row["number"]] = row
    for part in parts.values():
        first = next(iter(part.values()))
        line = [field(name, first[name]) for name in names]
        line += [field(n, *(part[n][name] for name in ("value", "ci_low", "ci_high"))) for n in numbers]
        lines.append([*line, field("status", first["status"]), field("reason", text_of(first["reason"]))])
    titles = [*names, *numbers.values(), "status", "reason"]
    return {"titles": titles, "rows": [(False, line) for line in lines], "filters": filters(titles)}


def text_of(value: Any) -> str | None:
    """A text, or None where it is missing or empty."""
    return None if is_missing(value) or not value else str(value)


def matrices(board: Board) -> list[dict[str, Any]]:
    """A heat map for each model and scenario, as a table: defenses down, attacks across."""
    attacks = [str(name) for name in board.matrix if name not in ("model", "scenario", "defense")]
    attacks.sort(key=lambda name: name != CONTROL)
    rank = {name: i for i, name in enumerate(dict.fromkeys(board.leaderboard["defense"]))}
    found = []
    for (model, scenario), part in board.matrix.groupby(["model", "scenario"], sort=False):
        order = part.sort_values("defense", key=lambda names: names.map(rank))
        rows = [(row["defense"], [heat(row[a]) for a in attacks]) for row in order.to_dict("records")]
        found.append({"model": model, "scenario": scenario, "attacks": attacks, "rows": rows})
    return found


def heat(value: Any) -> tuple[str, float | None]:
    """A presence and how warm its field is, in percent."""
    return (number(value, share=True), None if is_missing(value) else clip(value))
