"""What a plan left out, for people: one line for each attack and reason, however many defenses it concerns."""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmark.plan.matrix import Skip


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An attack that makes no sense for some concepts, on so many defenses."""

    attack: str
    concepts: tuple[str, ...]
    defenses: tuple[str, ...]
    reason: str

    @property
    def told(self) -> str:
        """`paraphrase on cigarette (5 defenses)`, without the reason."""
        who = self.defenses[0] if len(self.defenses) == 1 else f"{len(self.defenses)} defenses"
        return f"{self.attack} on {', '.join(self.concepts)} ({who})"


def grouped(skips: Iterable[Skip]) -> list[LeftOut]:
    """The skips, in their order, by attack, reason and defenses."""
    by_concept: dict[tuple[str, str, str], list[str]] = {}
    for skip in skips:
        attack = f"{skip.attack}@{skip.budget}" if skip.budget else skip.attack
        by_concept.setdefault((attack, skip.reason, skip.concept), []).append(skip.defense)
    found: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (attack, reason, concept), defenses in by_concept.items():
        found.setdefault((attack, reason, tuple(dict.fromkeys(defenses))), []).append(concept)
    return [
        LeftOut(attack=attack, concepts=tuple(concepts), defenses=defenses, reason=reason)
        for (attack, reason, defenses), concepts in found.items()
    ]
