"""Labels of points that cover neither each other nor the points, their intervals or the edge of the plot."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

SIZE, HIGH = 7.5, 9.0  # points: of the letters, and of a line of them
WIDE = 0.56  # of a letter, as a share of its size
LETTERS, LINES = 17, 4  # of a label at most: many points may lie on each other
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


def place_labels(
    axes: Axes, names: Mapping[Point, Sequence[str]], bars: Sequence[tuple[float, float, float]] = ()
) -> None:
    """Write the names of what lies at each point (x, y) beside it.

    Limits of the axes must be set; `bars` are intervals (x, low, high).
    """
    texts = {place: shortened(found) for place, found in names.items()}
    window = axes.get_window_extent()
    assert axes.figure is not None
    scale = 72 / axes.figure.dpi

    def at(x: float, y: float) -> Point:
        found = (np.asarray(axes.transData.transform((x, y))) - (window.x0, window.y0)) * scale
        return float(found[0]), float(found[1])

    frame = (0.0, 0.0, window.width * scale, window.height * scale)
    taken = [around(at(x, y), 5.0) for x, y in texts]
    for x, low, high in bars:
        if low == low and high == high:
            (left, bottom), (_, top) = at(x, low), at(x, high)
            taken.append((left - 2.5, bottom, left + 2.5, top))
    for place, offset in arrange({at(*place): text for place, text in texts.items()}, taken, frame).items():
        spot = next(given for given in texts if at(*given) == place)
        made = axes.annotate(
            texts[spot], spot, xytext=offset, textcoords="offset points", fontsize=SIZE, linespacing=1.15
        )
        made.set_in_layout(False)  # else a long one takes the room of the plot


def shortened(names: Sequence[str]) -> str:
    """The names in a few lines; of more it says how many."""
    for count in range(len(names), 0, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        lines = textwrap.wrap(", ".join(names[:count]) + more, LETTERS, break_long_words=False, break_on_hyphens=False)
        if len(lines) <= LINES or count == 1:
            break
    return "\n".join(lines)


def arrange(texts: Mapping[Point, str], taken: Sequence[Box], frame: Box) -> dict[Point, Point]:
    """For each point, in points of the page, where its label begins: the nearest place that covers the least.

    Args:
        taken: what must not be covered.
        frame: what labels should stay within.
    """
    boxes, found = list(taken), dict[Point, Point]()
    for (x, y), text in sorted(texts.items(), key=lambda pair: (-len(pair[1]), pair[0])):  # the longest has least room
        lines = text.split("\n")
        size = WIDE * SIZE * max(map(len, lines)), HIGH * len(lines)
        found[x, y] = best((x, y), size, boxes, frame)
        boxes.append(label_box((x, y), found[x, y], size))
    return found


def best(point: Point, size: Point, taken: Sequence[Box], frame: Box) -> Point:
    """The offset at which a label of this size covers the least; of equals the nearest."""
    return min(
        offsets(size[0]),
        key=lambda by: (round(cost(label_box(point, by, size), taken, frame), 3), distance(by, size[0])),
    )


def offsets(width: float) -> list[Point]:
    """Places around a point: to its right, to its left, above and below, further and further away."""
    rows = [step * sign * HIGH for step in np.arange(0, 9, 0.5) for sign in (1, -1)]
    return [(x, row - 2.5) for row in rows for x in (7.0, -7.0 - width, -width / 2, -width / 4, -width * 3 / 4)]


def distance(offset: Point, width: float) -> float:
    """How far a label is from its point; a label on the right is read first."""
    x, y = offset
    return abs(y + 2.5) + (0.0 if x > 0 else 2.0 if x < -width else 4.0)


def label_box(point: Point, offset: Point, size: Point) -> Box:
    """What a label of this width and height covers; it grows upwards from its offset."""
    left, bottom = point[0] + offset[0], point[1] + offset[1] - 1.5
    return left, bottom, left + size[0], bottom + size[1]


def around(point: Point, by: float) -> Box:
    """A square about a point."""
    return point[0] - by, point[1] - by, point[0] + by, point[1] + by


def cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """Area of `box` that lies on what is taken, and ten times what lies outside the frame."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return sum(overlap(box, other) for other in taken) + 10 * max(0.0, area - overlap(box, frame))


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)
