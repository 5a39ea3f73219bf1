"""The worst arm of a row, drawn anew: what selected it is not what it is reported by.

The largest of many noisy means lies too high, and so does an interval around it: each attack added to a config makes
every row look worse, the more the more alike its arms are. Images that played no part in naming the arm do not. So
`worst_presence` is the mean of fresh images of the named arm alone, and its interval the ordinary one of one arm.

The arm that was named may not be the largest. So the upper end is never under the mean that it was named by, which
nothing tells to be out of reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from leaderboards.bootstrap import Draws
from leaderboards.evidence import CONFIRMED, Evidence, Key
from leaderboards.intervals import proportions
from leaderboards.panel import Arm, Axes, Panel, Worst, assemble, axes_of

ARM: Arm = ("worst", 0)  # in panels of several rows, whose worst arms differ
UNCONFIRMED = "worst presence not confirmed on fresh images"


def fresh(evidence: Evidence, keys: Sequence[Key], axes: Axes | None = None) -> Panel | None:
    """The fresh images of the cells `keys` of one arm as a panel of one arm, on the concepts, runs and prompts of
    `axes` or their own; None unless each of the cells has some.
    """
    if not keys or not all(evidence.sample(key, CONFIRMED) for key in keys):
        return None
    own = replace(axes or axes_of(evidence, keys, CONFIRMED), arms=((keys[0].attack, keys[0].budget),))
    return Panel(replace(own, arms=(ARM,)), assemble(evidence, keys, own, CONFIRMED).hits)


def together(evidence: Evidence, named: Mapping[str, Sequence[Key]]) -> dict[str, Panel]:
    """The fresh images of each defense's worst arm, on common axes, of those that have some."""
    known = {defense: keys for defense, keys in named.items() if fresh(evidence, keys) is not None}
    axes = axes_of(evidence, [key for keys in known.values() for key in keys], CONFIRMED)
    found = {defense: fresh(evidence, keys, axes) for defense, keys in known.items()}
    return {defense: panel for defense, panel in found.items() if panel is not None}


def confirmed(panel: Panel, largest: Worst, bootstrap: Draws) -> Worst:
    """The worst case by fresh images alone; `largest` named its arm."""
    drawn = panel.bootstrap(bootstrap)
    value, prompts = float(drawn.means[0]), int(panel.prompts[0])
    both = proportions(value, drawn, drawn.draws[:, 0], drawn.fixed[:, 0], prompts)
    general, fixed = (each._replace(high=max(each.high, largest.interval.value)) for each in both)
    return Worst(general, largest.arm, drawn.draws[:, 0], fixed, panel)
