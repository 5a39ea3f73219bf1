"""What a config says of a paper's claims, and whether this run can check them."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmark.config.entries import Entry, labels_of
from benchmark.errors import ConfigError, unknown

# The numbers of every cell, and those that a judge, a second judge or an adaptation gives beside the metrics' own.
NUMBERS: tuple[str, ...] = (
    "presence",
    "presence_before",
    "presence_after",
    "ceiling",
    "reactivation_rate",
    "recovered",
)
NUMBERS += (
    "presence_best",
    "retained_accuracy",
    "benign_adaptation",
    "judge_disagreement",
    "judge_kappa",
    "ua",
    "ira",
    "cra",
    "confirmed",
)


class ClaimText(BaseModel):
    """A paper's claim and how a run checks it: the fields of `leaderboards.claims.Claim`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    claim: str = Field(min_length=1)
    defense: str
    statement: str
    source: str
    check: Literal["bound", "gap", "ratio"]
    number: str = "presence"
    against: str = ""
    attack: str = ""
    budget: int = Field(0, ge=0)
    at_most: float | None = Field(None, allow_inf_nan=False)
    at_least: float | None = Field(None, allow_inf_nan=False)
    below: bool = True


def check_forms(claims: Sequence[ClaimText]) -> None:
    """Refuse a claim that its check cannot decide.

    Raises:
        ConfigError: the first of them.
    """
    for claim in claims:
        limits = (claim.at_most is not None) + (claim.at_least is not None)
        if limits != (claim.check != "gap"):
            raise ConfigError(
                f"expected at_most or at_least in claim {claim.claim!r}, and neither in a gap, got {limits} of them."
            )
        if claim.check != "bound" and not claim.against:
            raise ConfigError(f"expected `against: DEFENSE` in the {claim.check} claim {claim.claim!r}, got none.")


def check_names(claims: Sequence[ClaimText], listed: dict[Any, tuple[Entry, ...]], budgets: Sequence[int]) -> None:
    """Refuse a claim about what this run does not have: it would rest undecided for ever.

    Args:
        claims: the config's.
        listed: its entries by kind.
        budgets: its steps.

    Raises:
        ConfigError: the first unknown defense, attack, budget or number.
    """
    defenses = {*labels_of(listed["defense"]), "none"}
    attacks = {entry.label: entry for entry in listed["attack"]}
    metrics = labels_of(listed["metric"])
    for claim in claims:
        place = f"in claim {claim.claim!r}:"
        for name in filter(None, (claim.defense, claim.against)):
            if name not in defenses:
                raise ConfigError(unknown(f"defense {place}", name, defenses))
        if claim.attack and claim.attack not in attacks:
            raise ConfigError(unknown(f"attack {place}", claim.attack, attacks))
        if claim.number not in NUMBERS and not claim.number.startswith((*metrics, "presence", "judge_")):
            raise ConfigError(unknown(f"number {place}", claim.number, [*NUMBERS, *metrics]))
        known = reached(attacks[claim.attack], budgets) if claim.attack else []
        if claim.budget and claim.budget not in known:
            raise ConfigError(unknown(f"budget {place}", str(claim.budget), map(str, known)))


def reached(attack: Entry, budgets: Sequence[int]) -> list[int]:
    """The budgets of an attack's cells; one that follows another counts that one's steps too."""
    own = list(attack.budgets(budgets))
    if attack.after is None or not own:
        return own
    start = attack.at or min(attack.after.budgets(budgets), default=0)
    return [start + budget for budget in own]
