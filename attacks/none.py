"""none: no attack. The defended model answers prompts that name the concept; the control, and the template to copy.

Access    none
Budget    nothing is spent.
"""

from dataclasses import dataclass

from attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """Leaves the defended model and the prompts as they are."""

    version = 1
    changes = "none"
    access = "none"
