"""Figures of a board by matplotlib: for the report as inline SVG, for a paper as PDF and PNG.

The same functions draw both. In a page the few colours become CSS variables, so that a figure follows the light or dark
scheme, text stays text, and a point says its numbers when pointed at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from benchmark.results.report.curves import CEILING, draw_curves
from benchmark.results.report.series import INK, LINE, MUTED, Look, looks, panels, utilities
from benchmark.results.report.svg import Tips, svg
from benchmark.results.report.tradeoff import draw_pareto
from leaderboards.board import CONTROL, Board

MARGINS = {"left": 0.135, "right": 0.965, "top": 0.97, "bottom": 0.185}  # of a panel: looking for them takes longer
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "titer",
    "pdf.fonttype": 42,
    "font.size": 8,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def draw_matrix(axes: Axes, rows: pd.DataFrame, attacks: Sequence[str]) -> None:
    """Heat map of worst presence: defenses down, attacks across; a missing cell is hatched."""
    values = rows[list(attacks)].astype(float).to_numpy()
    axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(attacks)), list(attacks), rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), list(rows["defense"]))
    for i, j in ((i, j) for i in range(len(rows)) for j in range(len(attacks))):
        value = values[i, j]
        if value != value:
            field_of = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", edgecolor=MUTED, linewidth=0)
            axes.add_patch(field_of)
        else:
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.55 else "black")


def curve_svg(part: pd.DataFrame, styles: Mapping[str, Look], prefix: str, label: str, unit: str = "") -> str:
    """One panel of curves for a page."""
    with mpl.rc_context(STYLE):
        figure, tips = Figure(figsize=(3.4, 2.25)), Tips()
        figure.subplots_adjust(**MARGINS)
        draw_curves(figure.subplots(), part, styles, tips, unit)
        return svg(figure, tips, prefix, label)


def pareto_svg(rows: pd.DataFrame, utility: str, styles: Mapping[str, Look], prefix: str, label: str) -> str:
    """One Pareto plot for a page."""
    with mpl.rc_context(STYLE):
        figure, tips = Figure(figsize=(3.4, 2.6), layout="constrained"), Tips()
        draw_pareto(figure.subplots(), rows, utility, styles, tips)
        return svg(figure, tips, prefix, label)


def save(board: Board, folder: Path, units: Mapping[str, str] | None = None) -> list[Path]:
    """Write `curves`, `pareto` and `matrix` as PDF and PNG (300 dpi) for a paper; return the files.

    A figure for which the board has no numbers is not written. `units` say what the budget of an attack counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        made = {"curves": all_curves(board, units or {}), "pareto": all_pareto(board), "matrix": all_matrices(board)}
        files = []
        for name, figure in made.items():
            if figure is None:
                continue
            for suffix in ("pdf", "png"):
                path, part = folder / f"{name}.{suffix}", folder / f".{name}.{suffix}"
                dates = {"CreationDate": None} if suffix == "pdf" else {}
                figure.savefig(part, format=suffix, dpi=300, metadata=dates)
                part.replace(path)
                files.append(path)
    return files


def all_curves(board: Board, units: Mapping[str, str]) -> Figure | None:
    """All panels of curves, three in a row, with one legend."""
    parts, styles = panels(board), looks(board)
    if not parts:
        return None
    rows = -(-len(parts) // 3)
    columns = min(3, len(parts))
    figure = Figure(figsize=(2.35 * columns + 0.2, 1.95 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (named, part) in zip(grid, parts, strict=False):
        draw_curves(axes, part, styles, Tips(), units.get(named["attack"], ""))
        axes.set_title(f"{named['concept']}, {named['attack']}", loc="left")
    for axes in grid[len(parts) :]:
        axes.remove()
    legend = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dash, markersize=4.5, label=name)
        for name, look in styles.items()
    ]
    legend.append(Line2D([], [], color=INK, **CEILING, label="ceiling"))
    figure.legend(handles=legend, loc="outside upper left", ncols=4, frameon=False)
    return figure


def all_pareto(board: Board) -> Figure | None:
    """A Pareto plot for each model, scenario and utility."""
    names, styles = utilities(board), looks(board)
    parts = list(board.leaderboard.groupby(["model", "scenario"], sort=False))
    if not names or not parts:
        return None
    size = (2.6 * len(names) + 0.2, 2.3 * len(parts) + 0.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(parts), len(names), squeeze=False)
    for line, ((model, scenario), rows) in zip(grid, parts, strict=True):
        for axes, utility in zip(line, names, strict=True):
            draw_pareto(axes, rows, utility, styles, Tips())
            axes.set_title(f"{model}, {scenario}", loc="left")
    return figure


def all_matrices(board: Board) -> Figure | None:
    """A heat map for each model and scenario."""
    parts = list(board.matrix.groupby(["model", "scenario"], sort=False))
    attacks = [str(name) for name in board.matrix if name not in ("model", "scenario", "defense")]
    if not parts or not attacks:
        return None
    attacks.sort(key=lambda name: name != CONTROL)
    rank = {name: i for i, name in enumerate(dict.fromkeys(board.leaderboard["defense"]))}
    height = sum(0.28 * len(rows) + 0.9 for _, rows in parts)
    figure = Figure(figsize=(0.55 * len(attacks) + 1.8, height), layout="constrained")
    grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=[len(rows) for _, rows in parts]).ravel()
    for axes, ((model, scenario), rows) in zip(grid, parts, strict=True):
        draw_matrix(axes, rows.sort_values("defense", key=lambda names: names.map(rank)), attacks)
        axes.set_title(f"worst presence: {model}, {scenario}", loc="left")
    return figure
