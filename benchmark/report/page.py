"""Plan, store and board -> report/index.html: one file with all it needs, which a policy in its head keeps offline.

Jinja fills the template, matplotlib draws the figures as inline SVG while the page is written, and DataTables, from the
package itables, sorts and filters the tables, which are plain HTML without it. These are imported when a page is
written, not before.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmark.files import write_whole
from benchmark.plan import Plan
from benchmark.report import gallery, series
from benchmark.report.sketch import Panel, Sketch
from benchmark.store import Store
from leaderboards.board import CONTROL, Board

if TYPE_CHECKING:
    from benchmark.report.series import Look

HERE = Path(__file__).parent
DASH = "\N{EN DASH}"  # a missing number
CELL = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
FILES = ("records.csv", "run.json", "failures.json")
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


def write(
    plan: Plan, store: Store, board: Board, facts: Mapping[str, Any], folder: Path, sketch: Sketch | None = None
) -> Path:
    """Write `folder/index.html`, whole or not at all; links lead to the run's tables one folder up.

    Args:
        facts: what `run.json` says: config, base, versions, machine, command, planned_passes, spent.
        sketch: what draws the curves; without one, this process.
    """
    import jinja2

    folder.mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("template.html.j2").render(context(plan, store, board, facts, sketch or Sketch()))
    write_whole(folder / "index.html", text)
    return folder / "index.html"


def context(plan: Plan, store: Store, board: Board, facts: Mapping[str, Any], sketch: Sketch) -> dict[str, Any]:
    """All that the template reads."""
    import yaml

    pictures, styles = gallery.Pictures(plan, store), series.looks(board)
    first, second = curves(board), paretos(board)
    sketch.ask([shown["panel"] for shown in (*first, *second)], styles)
    metas = {key: store.meta(key) for key in plan.tasks if store.has(key)}
    described = {str(k): v for k, v in facts.items() if k not in ("config", "versions", "machine", "command")}
    found = {
        "name": plan.config.raw.name,
        "model": plan.config.raw.model,
        "is_toy": bool(board.leaderboard.get("toy", pd.Series(dtype=bool)).any()),
        "counts": statuses(board),
        "story": gallery.story(pictures, board.cells),
        "leaderboard": leaderboard(board),
        "comparisons": comparisons(board),
        "matrices": matrices(board),
        "legend": legend(styles),
        "blocks": gallery.blocks(pictures, board.cells),
        "cells": cells(board),
        "warnings": warnings(plan, board, metas),
        "skipped": [vars(skip) for skip in plan.skipped],
        "cost": cost(plan, metas),
        "passes": (plan.passes, plan.requested),
        "command": " ".join(map(str, facts.get("command", []))),
        "config": yaml.safe_dump(facts.get("config", {}), sort_keys=False, allow_unicode=True),
        "facts": described,
        "versions": facts.get("versions", {}),
        "machine": facts.get("machine", {}),
        "tables": [*(f"{table.name}.csv" for table in fields(board)), *FILES],
        "bundle": bundle(),
    }
    drawn = sketch.drawn()
    svgs = [shown | {"svg": svg} for shown, svg in zip((*first, *second), drawn, strict=True)]
    return found | {"curves": svgs[: len(first)], "paretos": svgs[len(first) :]}


def bundle() -> str:
    """DataTables as base64, for a module that is imported from a data URI."""
    import itables

    script = Path(itables.__file__).parent / "html" / "dt_bundle.js"
    return base64.b64encode(script.read_bytes()).decode()


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


def statuses(board: Board) -> dict[str, int]:
    """How many cells have each status, `ok` first."""
    found = board.cells.drop_duplicates(CELL)["status"].value_counts().to_dict()
    return {str(k): int(v) for k, v in sorted(found.items(), key=lambda pair: pair[0] != "ok")}


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


def legend(styles: Mapping[str, "Look"]) -> list[tuple[str, str, str]]:
    """Name, CSS variable and marker of each defense."""
    signs = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
    return [(name, look.variable, signs[look.marker]) for name, look in styles.items()]


def curves(board: Board) -> list[dict[str, Any]]:
    """What each panel shows, one for each concept and attack with budgets, and its numbers."""
    found = []
    for named, part in series.panels(board):
        title = f"{'all concepts' if named['concept'] == 'all' else named['concept']}, {named['attack']}"
        if board.curves[["model", "scenario"]].drop_duplicates().shape[0] > 1:
            title += f" ({named['model']}, {named['scenario']})"
        label = f"Presence of {named['concept']} over the budget of {named['attack']}; the numbers are below."
        rows = part.sort_values(["defense", "budget"]).to_dict("records")
        numbers = [
            [
                *(row["defense"], row["budget"], series.interval(row["presence"], row["ci_low"], row["ci_high"])),
                *(number(row["ceiling"], share=True), row["n"]),
            ]
            for row in rows
            if not is_missing(row["presence"])
        ]
        is_all = named["concept"] == "all"
        panel = Panel(rows=part, label=label)
        found.append({"title": title, "panel": panel, "numbers": numbers, "is_all": is_all})
    return found


def paretos(board: Board) -> list[dict[str, Any]]:
    """Worst presence against each utility that was measured."""
    found: list[dict[str, Any]] = []
    for (model, scenario), rows in board.leaderboard.groupby(["model", "scenario"], sort=False):
        for utility in series.utilities(board):
            label = f"Worst presence against {series.UTILITIES[utility]}; the numbers are in the leaderboard."
            panel = Panel(rows=rows[[*series.WORST, utility]], label=label, utility=utility)
            title = f"{series.UTILITIES[utility]} ({model}, {scenario})"
            found.append({"title": title, "panel": panel, "numbers": []})
    return found


def warnings(plan: Plan, board: Board, metas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Cells that are not ok, by status and reason, and tasks that carry a flag or could not be judged in part."""
    bad = board.cells[board.cells["status"] != "ok"].drop_duplicates(CELL)
    groups = []
    for (status, reason), part in bad.fillna({"reason": ""}).groupby(["status", "reason"]):
        names = [f"{c.concept}/{c.defense}/{c.attack}@{c.budget}#{c.seed}" for c in part.itertuples()]
        groups.append({"status": status, "reason": reason or "no reason given", "cells": names})
    flagged = []
    for key, meta in metas.items():
        if meta.get("flags"):
            detail = meta.get("stopped") or "; ".join(meta.get("faults", []))
            flagged.append({"label": plan.tasks[key].label, "flags": ", ".join(meta["flags"]), "detail": detail})
    return {"cells": groups, "flags": flagged}


def cost(plan: Plan, metas: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each kind of task: how many, how many are done, and what these cost."""
    found: dict[str, dict[str, Any]] = {}
    for key, task in plan.tasks.items():
        line = found.setdefault(task.kind, {"tasks": 0, "done": 0, "seconds": 0.0, "forward": 0, "backward": 0})
        spent = metas.get(key, {}).get("cost", {})
        line["tasks"] += 1
        line["done"] += key in metas
        line["seconds"] += spent.get("seconds") or 0
        line["forward"] += int(spent.get("unet_forward") or 0)
        line["backward"] += int(spent.get("unet_backward") or 0)
    return [{"kind": kind, **line, "time": duration(line["seconds"])} for kind, line in found.items()]


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `4.2 s`."""
    if seconds < 60 or not math.isfinite(seconds):
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
