"""Per-image scores, reduced to what each cell needs: prompt means, counts and paired images.

A metric column is named by its label and split: `presence` on retained prompts is `retained_accuracy`, and `clip_score`
on safe prompts is `clip_score`; elsewhere the split is appended (`clip_score_concept`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from leaderboards.intervals import FloatArray

KEY = ["model", "scenario", "concept", "defense", "attack", "budget", "seed"]
SCORES = [*KEY, "split", "metric", "identity", "prompt_id", "image", "value"]
CELLS = [*KEY, "kind", "status", "reason", "expected", "key"]
COSTS = ["model", "scenario", "concept", "defense", "defend_seconds", "peak_memory_mib", "fidelity"]
SPLITS = ("concept", "retained", "safe")


class Key(NamedTuple):
    """What names a cell."""

    model: str
    scenario: str
    concept: str
    defense: str
    attack: str
    budget: int
    seed: int


@dataclass(frozen=True, eq=False)
class Sample:
    """One metric on one split of one cell: prompt ids (P,) ascending, their mean (P,) over images, and counts.

    `scored` images have a value; `rows` counts also those on which the metric failed. A prompt without any
    scored image is not in `prompts`.
    """

    prompts: tuple[str, ...]
    means: FloatArray
    scored: int
    rows: int
    identity: str

    @property
    def mean(self) -> float:
        """Mean over prompts of the prompt means, NaN without any."""
        return float(self.means.mean()) if len(self.means) else float("nan")


@dataclass(frozen=True, eq=False)
class Evidence:
    """All samples by cell and column, and the presence judge's hits by image for the cell's concept split."""

    samples: dict[Key, dict[str, Sample]]
    hits: dict[Key, "pd.Series[float]"]  # index (prompt_id, image)
    unattacked: dict[tuple[str, str, str, str], Key]  # (model, scenario, concept, defense) -> its attack `none`

    def sample(self, key: Key | None, column: str) -> Sample | None:
        """The sample of `column`, None if nothing was scored for it."""
        return self.samples.get(key, {}).get(column) if key else None

    def before(self, key: Key) -> Key | None:
        """The same defended model before the attack: budget 0 of the run, else attack `none`."""
        start = key._replace(budget=0)
        plain = start._replace(attack="none")
        return next((k for k in (start, plain) if k in self.samples), self.unattacked.get(key[:4]))

    def control(self, key: Key) -> Key | None:
        """The base under the same attack, budget and seed: the positive control."""
        base = key._replace(defense="none")
        return base if base in self.samples or key.budget > 0 else self.before(base)

    def untouched(self, key: Key) -> Key | None:
        """The base before any attack."""
        plain = key._replace(defense="none", attack="none", budget=0)
        return plain if plain in self.samples else self.before(key._replace(defense="none"))


def require(frame: pd.DataFrame, columns: list[str], name: str) -> None:
    """Raise ValueError if `frame` lacks one of `columns`."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{name}: expected the columns {', '.join(columns)}; missing: {', '.join(missing)}")


def refuse_duplicates(frame: pd.DataFrame, columns: list[str], name: str) -> None:
    """Raise ValueError if two rows of `frame` agree in `columns`."""
    twice = frame[frame.duplicated(columns, keep=False)]
    if len(twice):
        first = ", ".join(f"{column}={twice.iloc[0][column]}" for column in columns)
        raise ValueError(f"{name}: expected one row for each {', '.join(columns)}; got more for {first}")


def column_of(metric: str, split: str) -> str:
    """The column under which a metric's values on a split are reported."""
    if metric.startswith("presence"):
        columns = {"concept": metric, "retained": metric.replace("presence", "retained_accuracy", 1)}
        return columns.get(split, f"{metric}_{split}")
    return metric if split == "safe" else f"{metric}_{split}"


def read(scores: pd.DataFrame) -> Evidence:
    """Check and reduce the score rows. The order of rows makes no difference."""
    require(scores, SCORES, "scores")
    refuse_duplicates(scores, [*KEY, "split", "metric", "prompt_id", "image"], "scores")
    _refuse_unknown_splits(scores)
    _refuse_mixed_identities(scores)
    scores = scores.assign(value=scores["value"].astype(float)).sort_values(["prompt_id", "image"])
    samples = _samples(scores)
    judged = scores[(scores["metric"] == "presence") & (scores["split"] == "concept")]
    hits = {_key(name): part.set_index(["prompt_id", "image"])["value"] for name, part in judged.groupby(KEY)}
    plain = sorted((key for key in samples if key.attack == "none"), reverse=True)  # the lowest seed is kept
    return Evidence(samples, hits, {key[:4]: key for key in plain})


def _key(name: tuple[Any, ...]) -> Key:
    return Key(*name[: len(KEY)])


def _samples(scores: pd.DataFrame) -> dict[Key, dict[str, Sample]]:
    groups = scores.groupby([*KEY, "split", "metric", "identity", "prompt_id"])["value"]
    prompts = groups.agg(["mean", "count", "size"]).reset_index()
    samples: dict[Key, dict[str, Sample]] = {}
    for name, part in prompts.groupby([*KEY, "split", "metric", "identity"]):
        split, metric, identity = name[len(KEY) :]
        known = part[part["count"] > 0]
        ids, means = tuple(known["prompt_id"]), known["mean"].to_numpy(dtype=np.float64)
        sample = Sample(ids, means, int(part["count"].sum()), int(part["size"].sum()), str(identity))
        samples.setdefault(_key(name), {})[column_of(str(metric), str(split))] = sample
    return samples


def _refuse_unknown_splits(scores: pd.DataFrame) -> None:
    unknown = sorted(set(scores["split"]) - set(SPLITS))
    if unknown:
        raise ValueError(f"scores: expected split to be one of {', '.join(SPLITS)}; got {', '.join(unknown)}")


def _refuse_mixed_identities(scores: pd.DataFrame) -> None:
    """Numbers of two versions of a judge are not comparable, so a concept has one identity for each metric."""
    groups = scores.groupby(["model", "scenario", "concept", "split", "metric"])["identity"]
    mixed = groups.nunique(dropna=False)
    if (mixed > 1).any():
        name = mixed[mixed > 1].index[0]
        found = ", ".join(sorted(map(str, groups.get_group(name).unique())))
        raise ValueError(f"scores: expected one identity of the metric for {name}; got {found}. Score again with one.")


def aligned(sample: Sample | None, prompts: tuple[str, ...]) -> FloatArray:
    """Prompt means of `sample` at `prompts` (P,), NaN where it has none."""
    if sample is None:
        return np.full(len(prompts), np.nan)
    known = dict(zip(sample.prompts, sample.means, strict=True))
    return np.array([known.get(prompt, np.nan) for prompt in prompts], dtype=np.float64)
