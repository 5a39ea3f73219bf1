"""Presence over budget: a curve and a band for each defense, and the ceiling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from benchmark.results.report.series import INK, Look, interval
from benchmark.results.report.svg import Tips
from leaderboards.board import CONTROL

CEILING: Any = {"linestyle": (0, (5, 2)), "linewidth": 1.1}
SPREAD = 9.0  # points over which equal curves are moved apart


def draw_curves(axes: Axes, part: pd.DataFrame, styles: Mapping[str, Look], tips: Tips, unit: str = "") -> None:
    """Presence over budget of each defense with its interval, and the ceiling: the base under the same attack.

    Every curve is moved sideways by a point or two: curves that are equal can then be told apart.
    """
    budgets = sorted(part["budget"].unique())
    base = part[part["defense"] == CONTROL].sort_values("budget")
    if not base["presence"].notna().any():
        base = part.groupby("budget")["ceiling"].mean().rename("presence").reset_index()
    draw_line(axes, base, INK, tips, "ceiling", has_band=False, **CEILING)
    for number, (defense, look) in enumerate(styles.items()):
        own = part[part["defense"] == defense].sort_values("budget")
        if len(own):
            shape = {"marker": look.marker, "linestyle": look.dash, "markersize": 4.5}
            draw_line(axes, own, look.color, tips, defense, series=(number, len(styles)), **shape)
    first = max(1, next((b for b in budgets if b > 0), 1))
    axes.set_xscale("symlog", linthresh=first, linscale=0.6)
    axes.set_xticks(budgets, [str(b) for b in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.12 * first, max(budgets) * 1.1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"budget ({unit})" if unit else "budget")
    axes.set_ylabel("presence")


def draw_line(
    axes: Axes,
    rows: pd.DataFrame,
    color: str,
    tips: Tips,
    name: str,
    *,
    has_band: bool = True,
    series: tuple[int, int] | None = None,
    **shape: Any,
) -> None:
    """One curve with its band; every point can be pointed at. The limits of the axes are the caller's to set.

    series: the curve's number, and of how many; such a curve is moved, and can be switched off on a page.
    """
    x, y = rows["budget"].to_numpy(float), rows["presence"].to_numpy(float)
    moved, group = axes.transData, ""
    if series:
        number, count = series
        by = (number - (count - 1) / 2) * min(2.0, SPREAD / count)
        assert axes.figure is not None
        moved, group = axes.transData + ScaledTranslation(by / 72, 0, axes.figure.dpi_scale_trans), f"series{number}"
    if has_band:
        low, high = rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float)
        band = FillBetweenPolyCollection("x", x, low, high, color=color, alpha=0.13, linewidth=0, transform=moved)
        axes.add_artist(band).set_gid(f"{group}-band")
    line = Line2D(x, y, color=color, transform=moved, **{"linewidth": 1.5} | shape)
    axes.add_artist(line).set_gid(f"{group}-line" if group else None)
    known = rows[rows["presence"].notna()]
    texts = [
        f"{name}, budget {row['budget']}: {interval(row['presence'], row.get('ci_low'), row.get('ci_high'))}"
        for row in known.to_dict("records")
    ]
    if texts:
        unseen: Any = {"linestyle": "none", "marker": "o", "markersize": 9, "alpha": 0}
        points = Line2D(x[~np.isnan(y)], y[~np.isnan(y)], color=color, transform=moved, **unseen)
        axes.add_artist(points).set_gid(tips.add(texts, group))
