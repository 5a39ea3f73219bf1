"""How each defense looks in the curves, as the page's legend shows it: a line with its dash and its marker."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmark.results.report.series import Look

SHAPES = {  # SVG paths about the origin, 8 units wide; by matplotlib's marker
    "o": "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0",
    "s": "M-3.2,-3.2H3.2V3.2H-3.2Z",
    "^": "M0,-4L3.8,3H-3.8Z",
    "v": "M0,4L3.8,-3H-3.8Z",
    "<": "M-4,0L3,3.8V-3.8Z",
    ">": "M4,0L-3,3.8V-3.8Z",
    "D": "M0,-4.2L4.2,0L0,4.2L-4.2,0Z",
    "P": "M-1.3,-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4V-1.3H-1.3Z",
    "X": "M-4,-2.2L-2.2,-4L0,-1.8L2.2,-4L4,-2.2L1.8,0L4,2.2L2.2,4L0,1.8L-2.2,4L-4,2.2L-1.8,0Z",
    "p": "M0,-4.1L3.9,-1.3L2.4,3.3H-2.4L-3.9,-1.3Z",
    "h": "M0,-4.1L3.6,-2.05V2.05L0,4.1L-3.6,2.05V-2.05Z",
}
WIDTH = 1.5  # of a line; matplotlib's dashes are in its multiples


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One entry: the defense, its number among the curves, a CSS variable, an SVG path and an SVG dash pattern."""

    name: str
    series: int
    color: str
    shape: str
    dashes: str


def legend(styles: Mapping[str, Look]) -> list[Sign]:
    """An entry for each defense, in the order of the curves."""
    return [
        Sign(
            name=name,
            series=number,
            color=look.variable,
            shape=SHAPES[look.marker],
            dashes="" if isinstance(look.dash, str) else " ".join(f"{WIDTH * part:g}" for part in look.dash[1]),
        )
        for number, (name, look) in enumerate(styles.items())
    ]
