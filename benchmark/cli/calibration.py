"""A calibration card for any judge, from pictures whose labels are known: a folder with a subfolder for each label.

    {"identity": "top1@torchvision:resnet50/…", "concepts": {"church": {"true_positive": 0.9, "false_positive": 0.01}}}

A rate is the share of the label's pictures, or of all others, in which the judge sees the label. A zero-shot judge
chooses among labels, so its card is that of one list of labels: give the concept whose prompts it is to judge.
"""

from pathlib import Path
from typing import Any

from benchmark.data import load_concept
from benchmark.data.pictures import opened, read
from benchmark.errors import DataError, unknown
from benchmark.types import ELSE, Concept, Prompt, Report

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def calibrate(judge: str, folder: Path, concept: str, report: Report) -> dict[str, Any]:
    """The card of a judge, by its name as `metrics.judges` has it, with the rule that it has unless a metric sets one.

    Args:
        judge: its name.
        folder: a subfolder of pictures for each label; pictures of nothing known may be in `something else`.
        concept: a concept's name or card; without one the subfolders are the labels.
        report: called after each picture.

    Raises:
        DataError: the judge is not to be had or does not know a label, or the folder lacks pictures.
    """
    import numpy as np
    import torch

    from metrics.presence import Presence

    files = pictures(folder)
    card = load_concept(concept, "") if concept else named(list(files))
    for label in files:
        if label not in card.labels:
            raise DataError(f"{folder}: {unknown('label', label, card.labels)}")
    try:
        method = Presence(model=judge).for_card(card)
        method.check(card, [Prompt(text=x, split="concept", label=x) for x in files if x != ELSE])
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise DataError(str(error)) from error
    total, labels = sum(map(len, files.values())), list(card.labels)
    is_own, p, rank = list[str](), list[Any](), list[Any]()
    for label, paths in files.items():
        for path in paths:
            with opened(read(str(path)), str(path)) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            seen = method.judge.see(pixels[None].float() / 255, card)
            is_own.append(label)
            p.append(seen.p[0])
            rank.append(seen.rank[0])
            report(step=len(p), total=total, loss=float("nan"))
    found = {}
    for label in (label for label in files if label != ELSE):
        at = labels.index(label)
        columns = {"p": torch.stack(p)[:, at], "rank": torch.stack(rank)[:, at]}
        hits, own = method.rethreshold(columns, card)["value"], torch.tensor([each == label for each in is_own])
        found[label] = {
            "true_positive": round(float(hits[own].mean()), 4),
            "false_positive": round(float(hits[~own].mean()), 4),
            "positives": int(own.sum()),
            "negatives": int((~own).sum()),
        }
    return {"identity": method.identity(), "concepts": found}


def pictures(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each label.

    Raises:
        DataError: there are fewer than two labels, or one has no picture.
    """
    places = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = {at.name: sorted(f for f in at.iterdir() if f.suffix.lower() in SUFFIXES) for at in places}
    empty = [label for label, files in found.items() if not files]
    if len(found) < 2 or empty:
        got = f"no picture in {empty[0]!r}" if empty else f"{len(found)} of them"
        raise DataError(
            f"expected two subfolders or more in {folder}, a label with its pictures each, got {got}: put others in "
            f"{ELSE!r}."
        )
    return found


def named(labels: list[str]) -> Concept:
    """A card that knows labels by their names, and a way out."""
    chosen = next(label for label in labels if label != ELSE)
    texts = {label: label for label in [*labels, ELSE]}
    prompt = Prompt(text=chosen, split="concept", label=chosen)
    return Concept(name=chosen, phrase=chosen, kind="object", prompts=(prompt,), labels=texts)
