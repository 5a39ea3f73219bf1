"""Worst presence against a utility: a point with its interval for each defense, and what nothing else beats in both."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from benchmark.results.report.labels import place_labels
from benchmark.results.report.series import INK, MUTED, UTILITIES, Look, interval
from benchmark.results.report.svg import Tips
from leaderboards.board import CONTROL


def draw_pareto(axes: Axes, rows: pd.DataFrame, utility: str, styles: Mapping[str, Look], tips: Tips) -> None:
    """Worst presence against utility: low and to the right is best; the line joins what nothing else beats in both."""
    known = rows[rows["worst_presence"].notna() & rows[utility].notna()]
    best = front(known[known["defense"] != CONTROL], utility)
    axes.plot(best[utility], best["worst_presence"], color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
    labels: dict[tuple[float, float], list[str]] = {}
    bars: list[tuple[float, float, float]] = []
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
        bars.append((x, row["worst_presence_low"], row["worst_presence_high"]))
    axes.margins(x=0.22)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylim(-0.03, 1.08)
    place_labels(axes, labels, bars)
    axes.set_xlabel(f"{UTILITIES[utility]} →")
    axes.set_ylabel("← worst presence")


def front(rows: pd.DataFrame, utility: str) -> pd.DataFrame:
    """The rows that no other row beats in both utility (more) and worst presence (less), by utility."""
    pairs = list(zip(rows[utility], rows["worst_presence"], strict=True))
    beaten = [any(u >= x and w <= y and (u, w) != (x, y) for u, w in pairs) for x, y in pairs]
    return rows.loc[[i for i, b in zip(rows.index, beaten, strict=True) if not b]].sort_values(utility)
