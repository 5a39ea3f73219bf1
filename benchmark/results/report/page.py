"""Plan, store and board -> report/index.html: one file with all it needs, which a policy in its head keeps offline.

Jinja fills the template, matplotlib draws the figures as inline SVG while the page is written, and DataTables, from the
package itables, sorts and filters the tables, which are plain HTML without it. These are imported when a page is
written, not before.
"""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.plan import Plan
from benchmark.results.report import gallery, series, tables, weak
from benchmark.results.report.fields import is_missing, number
from benchmark.results.report.legend import legend
from benchmark.results.report.pictures import Pictures
from benchmark.results.report.sketch import Panel, Sketch
from benchmark.results.report.story import story
from benchmark.results.report.tables import CELL
from benchmark.store import Store
from benchmark.store.files import write_whole
from leaderboards.board import Board

HERE = Path(__file__).parent
FILES = ("records.csv", "run.json", "failures.json")


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

    pictures, styles = Pictures(plan, store), series.looks(board)
    first, second = curves(board, series.units(plan)), paretos(board)
    sketch.ask([shown["panel"] for shown in (*first, *second)], styles)
    metas = {key: store.meta(key) for key in plan.tasks if store.has(key)}
    described = {str(k): v for k, v in facts.items() if k not in ("config", "versions", "machine", "command")}
    blocks = gallery.blocks(pictures, board.cells)
    anchors = {block.defense: block.id for block in reversed(blocks)}  # of several concepts the first
    found = {
        "name": plan.config.raw.name,
        "model": plan.config.raw.model,
        "is_toy": bool(board.leaderboard.get("toy", pd.Series(dtype=bool)).any()),
        "counts": statuses(board),
        "story": story(pictures, board.cells),
        "notes": weak.notes(board),
        "anchors": anchors,
        "leaderboard": tables.leaderboard(board, anchors),
        "comparisons": tables.comparisons(board),
        "matrices": tables.matrices(board),
        "legend": legend(styles),
        "blocks": blocks,
        "at_once": gallery.OPEN,
        "cells": tables.cells(board),
        "warnings": weak.warnings(plan, board, metas),
        "skipped": len(plan.skipped),
        "cost": cost(plan, metas),
        "passes": (plan.passes, plan.requested),
        "command": " ".join(map(str, facts.get("command", []))),
        "config": yaml.safe_dump(facts.get("config", {}), sort_keys=False, allow_unicode=True),
        "facts": described,
        "versions": facts.get("versions", {}),
        "machine": facts.get("machine", {}),
        "tables": [*(f"{table.name}.csv" for table in fields(board)), *FILES],
        "script": (script := code()),
        "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    }
    drawn = sketch.drawn()
    svgs = [shown | {"svg": svg} for shown, svg in zip((*first, *second), drawn, strict=True)]
    return found | {"curves": svgs[: len(first)], "paretos": svgs[len(first) :]}


def code() -> str:
    """The page's only script. The policy in the head names its hash: no other runs, but what it imports itself."""
    text = f'\nconst bundle = "{bundle()}";\n{(HERE / "script.js").read_text()}\n'
    assert "</script" not in text
    return text


def bundle() -> str:
    """DataTables as base64, for a module that the script makes of it."""
    import itables

    script = Path(itables.__file__).parent / "html" / "dt_bundle.js"
    return base64.b64encode(script.read_bytes()).decode()


def statuses(board: Board) -> dict[str, int]:
    """How many cells have each status, `ok` first."""
    found = board.cells.drop_duplicates(CELL)["status"].value_counts().to_dict()
    return {str(k): int(v) for k, v in sorted(found.items(), key=lambda pair: pair[0] != "ok")}


def curves(board: Board, units: Mapping[str, str]) -> list[dict[str, Any]]:
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
        panel = Panel(rows=part, label=label, unit=units.get(named["attack"], ""))
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
