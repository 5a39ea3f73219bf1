"""Figures of a board by matplotlib: for the report as inline SVG, for a paper as PDF and PNG.

The same functions draw both. In a page the few colours become CSS variables, so that a figure follows the light or dark
scheme, text stays text, and a point says its numbers when pointed at.
"""

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from benchmark.results.report.series import (
    INK,
    LINE,
    MUTED,
    UTILITIES,
    VARIABLES,
    Look,
    interval,
    looks,
    panels,
    utilities,
)
from leaderboards.board import CONTROL, Board

MARGINS = {"left": 0.135, "right": 0.965, "top": 0.97, "bottom": 0.185}  # of a panel: looking for them takes longer
LEADING = 9  # points between two labels
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


@dataclass
class Tips:
    """What points say when pointed at, by the id of their group in the SVG."""

    texts: list[list[str]] = field(default_factory=list)

    def add(self, texts: Iterable[str]) -> str:
        """Keep the texts of a group of points, in their order; return its id."""
        self.texts.append(list(texts))
        return f"tips{len(self.texts) - 1}"

    def write(self, svg: str) -> str:
        """The SVG with a title on each point."""
        for i, texts in enumerate(self.texts):
            start = svg.index(f'<g id="tips{i}">')
            head, *points = re.split(r"(?=<use )", svg[start:], maxsplit=len(texts))
            titled = (
                f'<g class="tip"><title>{html.escape(text)}</title>{point.replace("/>", "/></g>", 1)}'
                for text, point in zip(texts, points, strict=True)
            )
            svg = svg[:start] + head + "".join(titled)
        return svg


def draw_curves(axes: Axes, part: pd.DataFrame, styles: Mapping[str, Look], tips: Tips) -> None:
    """Presence over budget of each defense with its interval, and the ceiling: the base under the same attack."""
    budgets = sorted(part["budget"].unique())
    base = part[part["defense"] == CONTROL].sort_values("budget")
    if base["presence"].notna().any():
        draw_line(axes, base, INK, tips, "ceiling", has_band=False, linestyle=(0, (5, 2)), linewidth=1.1)
    else:
        known = part.groupby("budget")["ceiling"].mean().rename("presence").reset_index()
        draw_line(axes, known, INK, tips, "ceiling", has_band=False, linestyle=(0, (5, 2)), linewidth=1.1)
    for defense, look in styles.items():
        own = part[part["defense"] == defense].sort_values("budget")
        if len(own):
            shape = {"marker": look.marker, "linestyle": look.dash, "markersize": 4.5}
            draw_line(axes, own, look.color, tips, defense, **shape)
    first = max(1, next((b for b in budgets if b > 0), 1))
    axes.set_xscale("symlog", linthresh=first, linscale=0.6)
    axes.set_xticks(budgets, [str(b) for b in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.12 * first, max(budgets) * 1.1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("budget (steps)")
    axes.set_ylabel("presence")


def draw_line(
    axes: Axes, rows: pd.DataFrame, color: str, tips: Tips, name: str, *, has_band: bool = True, **shape: Any
) -> None:
    """One curve with its band; every point can be pointed at. The limits of the axes are the caller's to set."""
    x, y = rows["budget"].to_numpy(float), rows["presence"].to_numpy(float)
    if has_band:
        low, high = rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float)
        axes.add_artist(FillBetweenPolyCollection("x", x, low, high, color=color, alpha=0.13, linewidth=0))
    axes.add_artist(Line2D(x, y, color=color, **{"linewidth": 1.5} | shape))
    known = rows[rows["presence"].notna()]
    texts = [
        f"{name}, budget {row['budget']}: {interval(row['presence'], row.get('ci_low'), row.get('ci_high'))}"
        for row in known.to_dict("records")
    ]
    if texts:
        unseen: Any = {"linestyle": "none", "marker": "o", "markersize": 9, "alpha": 0}
        points = Line2D(x[~np.isnan(y)], y[~np.isnan(y)], color=color, **unseen)
        axes.add_artist(points).set_gid(tips.add(texts))


def draw_pareto(axes: Axes, rows: pd.DataFrame, utility: str, styles: Mapping[str, Look], tips: Tips) -> None:
    """Worst presence against utility: low and to the right is best; the line joins what nothing else beats in both."""
    known = rows[rows["worst_presence"].notna() & rows[utility].notna()]
    best = front(known[known["defense"] != CONTROL], utility)
    axes.plot(best[utility], best["worst_presence"], color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
    labels: dict[tuple[float, float], list[str]] = {}
    for row in known.to_dict("records"):
        x, y, name = row[utility], row["worst_presence"], row["defense"]
        look = styles.get(name, Look(color=INK, marker="*", dash="-"))
        span = [[max(0.0, y - row["worst_presence_low"])], [max(0.0, row["worst_presence_high"] - y)]]
        axes.errorbar(x, y, yerr=span, color=look.color, marker=look.marker, markersize=6, linewidth=1.2, capsize=2)
        label = "none (base)" if name == CONTROL else name
        worst = interval(y, row["worst_presence_low"], row["worst_presence_high"])
        (point,) = axes.plot(x, y, "o", markersize=11, color=look.color, alpha=0)
        point.set_gid(tips.add([f"{label}: worst presence {worst}, {UTILITIES[utility]} {x:.3g}"]))
        labels.setdefault((x, y), []).append(label)
    axes.margins(x=0.22)
    axes.set_ylim(-0.03, 1.08)
    for place, level in apart(list(labels), axes.get_xlim()).items():
        below = LEADING * level * (1 if place[1] < 0.5 else -1)  # towards the middle
        text = ", ".join(labels[place])
        axes.annotate(text, place, xytext=(6, 4 + below), textcoords="offset points", fontsize=7.5)
    axes.set_xlabel(f"{UTILITIES[utility]} →")
    axes.set_ylabel("← worst presence")


def apart(places: Sequence[tuple[float, float]], limits: tuple[float, float]) -> dict[tuple[float, float], int]:
    """How many lines the label of each point is moved, so that none covers the label of a point near it."""
    found: dict[tuple[float, float], int] = {}
    width = limits[1] - limits[0]
    for x, y in sorted(places):
        near = {k for (a, b), k in found.items() if abs(x - a) < 0.3 * width and abs(y - b) < 0.1}
        found[x, y] = next(k for k in range(len(places)) if k not in near)
    return found


def front(rows: pd.DataFrame, utility: str) -> pd.DataFrame:
    """The rows that no other row beats in both utility (more) and worst presence (less), by utility."""
    pairs = list(zip(rows[utility], rows["worst_presence"], strict=True))
    beaten = [any(u >= x and w <= y and (u, w) != (x, y) for u, w in pairs) for x, y in pairs]
    return rows.loc[[i for i, b in zip(rows.index, beaten, strict=True) if not b]].sort_values(utility)


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


def curve_svg(part: pd.DataFrame, styles: Mapping[str, Look], prefix: str, label: str) -> str:
    """One panel of curves for a page."""
    with mpl.rc_context(STYLE):
        figure, tips = Figure(figsize=(3.4, 2.25)), Tips()
        figure.subplots_adjust(**MARGINS)
        draw_curves(figure.subplots(), part, styles, tips)
        return svg(figure, tips, prefix, label)


def pareto_svg(rows: pd.DataFrame, utility: str, styles: Mapping[str, Look], prefix: str, label: str) -> str:
    """One Pareto plot for a page."""
    with mpl.rc_context(STYLE):
        figure, tips = Figure(figsize=(3.4, 2.6), layout="constrained"), Tips()
        draw_pareto(figure.subplots(), rows, utility, styles, tips)
        return svg(figure, tips, prefix, label)


def svg(figure: Figure, tips: Tips, prefix: str, label: str) -> str:
    """Inline SVG: CSS variables for colours, titles for tips, ids that differ from figure to figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"^.*?(?=<svg )|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    text = tips.write(text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    head = f'<svg role="img" aria-label="{html.escape(label)}" '
    return re.sub(r'^<svg (?:width|height)="[^"]*" |^<svg ', head, text).strip()


def save(board: Board, folder: Path) -> list[Path]:
    """Write `curves`, `pareto` and `matrix` as PDF and PNG (300 dpi) for a paper; return the files.

    A figure for which the board has no numbers is not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        made = {"curves": all_curves(board), "pareto": all_pareto(board), "matrix": all_matrices(board)}
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


def all_curves(board: Board) -> Figure | None:
    """All panels of curves, three in a row, with one legend."""
    parts, styles = panels(board), looks(board)
    if not parts:
        return None
    rows = -(-len(parts) // 3)
    columns = min(3, len(parts))
    figure = Figure(figsize=(2.35 * columns + 0.2, 1.95 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (named, part) in zip(grid, parts, strict=False):
        draw_curves(axes, part, styles, Tips())
        axes.set_title(f"{named['concept']}, {named['attack']}", loc="left")
    for axes in grid[len(parts) :]:
        axes.remove()
    legend = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dash, markersize=4.5, label=name)
        for name, look in styles.items()
    ]
    legend.append(Line2D([], [], color=INK, linestyle=(0, (5, 2)), linewidth=1.1, label="ceiling"))
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
