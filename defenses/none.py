"""none: the undefended model. The control of every comparison, and the template to copy.

Differs   nothing to differ from.
Protects  against nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class Undefended(Defense):
    """Changes no weight."""

    version = 1
    several = True
    fidelity = "control"
    matched = "is the base itself"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the empty delta."""
        report(step=1, total=1, loss=0.0)
        return Delta()
