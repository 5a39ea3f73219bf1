"""What weakens a run's numbers, as its report says it first, and in full under Warnings."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmark.plan import Plan
from benchmark.plan.skips import grouped
from benchmark.results.report import tables
from leaderboards import troubles
from leaderboards.board import Board

FIRST = 3  # groups of cells that are told before the numbers


def notes(board: Board) -> dict[str, Any]:
    """Who judged, each flag with the rows that carry it, and the largest groups of cells that are not ok."""
    found = troubles.joined(troubles.troubles(board.cells[board.cells["status"] != "skipped"]))
    return {
        "judges": troubles.judges(board.leaderboard),
        "flags": [
            (flag.text, troubles.carriers(board.leaderboard, flag)) for flag in troubles.flags(board.leaderboard)
        ],
        "troubles": found[:FIRST],
        "more": max(0, len(found) - FIRST),
    }


def left_out(plan: Plan, board: Board) -> "pd.Series[bool]":
    """Which cells the plan itself left out: they are told once, for all defenses."""
    skips = {(skip.concept, skip.defense, skip.attack) for skip in plan.skipped}
    named = zip(*(board.cells[name] for name in ("concept", "defense", "attack")), strict=True)
    return pd.Series([who in skips for who in named], index=board.cells.index, dtype=bool)


def warnings(plan: Plan, board: Board, metas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Cells that are not ok or in doubt, what the plan left out, and tasks with a flag, each in groups."""
    flagged: dict[str, list[str]] = {}
    for key, meta in metas.items():
        if meta.get("flags"):
            detail = meta.get("stopped") or "; ".join(meta.get("faults", []))
            label = plan.tasks[key].label
            flagged.setdefault(", ".join(meta["flags"]), []).append(f"{label}: {detail}" if detail else label)
    return {
        "cells": tables.warnings(troubles.troubles(board.cells[~left_out(plan, board)])),
        "skipped": grouped(plan.skipped),
        "flags": sorted(flagged.items(), key=lambda pair: -len(pair[1])),
    }
