"""The pictures at the top of a report: one prompt and seed, from the base through the defense to the attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmark.plan.removal import LABEL
from benchmark.results.report.pictures import CONTROL, LARGE_SIDE, Picture, Pictures, Verdict, defended

WHO = ["concept", "defense", "attack", "budget"]
Verdicts = dict[str, tuple[Verdict, Verdict, Verdict]]  # on base, defended and most attacked image, by prompt id


@dataclass(frozen=True, kw_only=True)
class Story:
    """The picture at the top: one prompt and seed, from the base through the defense to the attack.

    pairs: prompts that are judged on all three models.
    known: those whose image on the base has the concept; only these can tell something about the defense.
    erased: of these, without the concept before the attack; returned: of those, with it at the end.
    weakness: the status of the attacked cell and the reason, where it is not ok.
    """

    concept: str
    defense: str
    attack: str
    prompt: str
    base: Picture
    steps: list[Picture]
    pairs: int
    known: int
    erased: int
    returned: int
    budget: int
    weakness: str = ""

    @property
    def title(self) -> str:
        """What happened, in a few words."""
        if not self.known:
            return "The base does not show the concept" if self.pairs else "No image was judged"
        if self.returned:
            return "The concept comes back"
        return "The concept stayed away" if self.erased else "The defense did not remove the concept"


def story(pictures: Pictures, cells: pd.DataFrame) -> Story | None:
    """The pair of models in which the concept comes back most often; None if nothing was attacked.

    Pairs whose most attacked cell is ok come first. Of the prompts in which the base draws it, the defended model does
    not and the attacked one does, it is the one of which the judge is surest.
    """
    seen = cells.drop_duplicates(WHO).set_index(WHO)[["status", "reason"]].to_dict("index")
    best: tuple[tuple[bool, int, int, int], tuple[str, str, str], str] | None = None
    for concept, defense in defended(pictures.plan):
        for attack, budgets in pictures.arms(concept, defense).items():
            if attack == LABEL:  # no attack: a part was put back
                continue
            found = verdicts(pictures, concept, defense, attack)
            weakness = weakness_of(seen.get((concept, defense, attack, budgets[-1]), {}))
            known, erased, returned = came_back(found)
            score = (not weakness, returned, erased, known)
            if found and (best is None or score > best[0]):
                best = score, (concept, defense, attack), weakness
    return tell(pictures, *best[1], best[2]) if best else None


def weakness_of(cell: Mapping[Any, Any]) -> str:
    """`invalid: the positive control failed`; empty for a cell that is ok."""
    status, reason = cell.get("status", "unknown"), cell.get("reason")
    return "" if status == "ok" else f"{status}{f': {reason}' if isinstance(reason, str) and reason else ''}"


def verdicts(pictures: Pictures, concept: str, defense: str, attack: str) -> Verdicts:
    """The verdicts on base, defended and most attacked images of each prompt id that has all three."""
    last = pictures.arms(concept, defense)[attack][-1]
    keys = [(concept, CONTROL, attack, 0), (concept, defense, attack, 0), (concept, defense, attack, last)]
    base, before, after = (pictures.judged(pictures.at[key]) for key in keys)
    return {p: (base[p], before[p], after[p]) for p in before if p in base and p in after}


def came_back(found: Verdicts) -> tuple[int, int, int]:
    """How many of the base's images have the concept, how many of these had lost it, and how many of those have it
    again. What the base does not draw can neither be lost nor come back.
    """
    known = [(before, after) for base, before, after in found.values() if base == "seen"]
    gone = [after for before, after in known if before == "absent"]
    return len(known), len(gone), gone.count("seen")


def tell(pictures: Pictures, concept: str, defense: str, attack: str, weakness: str = "") -> Story:
    """The story of one defense under one attack."""
    found, budgets = verdicts(pictures, concept, defense, attack), pictures.arms(concept, defense)[attack]
    start = pictures.at[concept, defense, attack, 0]
    wanted: list[tuple[Verdict, ...]] = [("seen", "absent", "seen"), ("seen", "absent", "absent")]
    keys = [(concept, CONTROL, attack, 0), (concept, defense, attack, 0), (concept, defense, attack, budgets[-1])]
    doubts = [pictures.doubt(pictures.at[key]) for key in keys]
    judged = [p for p in found if "unknown" not in found[p]]
    surest = sorted(judged, key=lambda p: sum(doubt.get(p, 0.0) for doubt in doubts))
    order = [p for verdicts in wanted for p in surest if found[p] == verdicts]
    prompt, name = next(
        ((p, name) for chosen in order for p, name in pictures.prompts(start) if p.id == chosen),
        pictures.prompts(start)[0],
    )
    cells = [pictures.at[concept, CONTROL, attack, 0]]
    cells += [pictures.at[concept, defense, attack, budget] for budget in (0, *budgets)]
    shown = [
        pictures.picture(cell, prompt, name, LARGE_SIDE, pictures.slug("story", number))
        for number, cell in enumerate(cells)
    ]
    known, erased, returned = came_back(found)
    return Story(
        concept=concept,
        defense=defense,
        attack=attack,
        prompt=name,
        base=shown[0],
        steps=shown[1:],
        pairs=sum("unknown" not in verdicts for verdicts in found.values()),
        known=known,
        erased=erased,
        returned=returned,
        budget=budgets[-1],
        weakness=weakness,
    )
