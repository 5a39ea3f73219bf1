"""Per-image scores, reduced to what each cell needs: prompt means, counts and scored images.

A metric column is named by its label and split: `presence` on retained prompts is `retained_accuracy`, and `clip_score`
on safe prompts is `clip_score`; elsewhere the split is appended (`clip_score_concept`). Every metric whose label begins
with `presence` is a judge; the board goes by the one of that very name, and says how far the others agree with it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from leaderboards.bootstrap import FloatArray, IntArray

ROOT = ["model", "scenario", "concept", "defense", "attack", "budget"]
KEY = [*ROOT, "seed", "defense_seed"]
GROUP = [*KEY, "split", "metric", "identity"]
SCORES = [*ROOT, "seed", "split", "metric", "identity", "prompt_id", "image", "value"]
CELLS = [*ROOT, "seed", "kind", "status", "reason", "expected", "key"]
COSTS = ["model", "scenario", "concept", "defense", "defend_seconds", "peak_memory_mib", "fidelity"]
DISTANCES = [*ROOT, "seed", "metric", "identity", "value", "ci_low", "ci_high", "n"]
CONFIRM = "confirm"  # fresh images of a cell whose attack is the worst of its defense, see `leaderboards.confirm`
SPLITS = ("concept", "retained", "cross", "safe", "adapted", CONFIRM)
JUDGE, SIMILARITY, CONFIRMED = "presence", "sgr_similarity", "confirmed"
BESIDE = "beside"  # kind of the attacked cells that are shown, and enter no rank
REMOVAL = "removal"  # kind and label of the cell in which a defense's part is put back from the base


class Key(NamedTuple):
    """What names a cell. A run is one training of the defense and one attack on it: both seeds together."""

    model: str
    scenario: str
    concept: str
    defense: str
    attack: str
    budget: int
    seed: int
    defense_seed: int = 0

    @property
    def run(self) -> tuple[int, int]:
        """The seeds of the defense's training and of the attack."""
        return self.defense_seed, self.seed

    @property
    def trained(self) -> tuple[str, str, str, str, int]:
        """The defended model, before any attack."""
        return (*self[:4], self.defense_seed)


@dataclass(frozen=True, eq=False)
class Sample:
    """One metric on one split of one cell: prompts (P,) ascending, their mean (P,) over images, and counts.

    A prompt is an integer that means the same in all samples of an `Evidence`; the order is that of the prompt ids.
    `scored` images have a value; `rows` counts also those on which the metric failed. A prompt without any
    scored image is not in `prompts`.
    """

    prompts: IntArray
    means: FloatArray
    scored: int
    rows: int
    identity: str

    @property
    def mean(self) -> float:
        """Mean over prompts of the prompt means, NaN without any."""
        return float(self.means.mean()) if len(self.means) else float("nan")


@dataclass(frozen=True, eq=False)
class Images:
    """The scored images of one cell, in ascending order: number, prompt and value, each (N,)."""

    ids: IntArray
    prompts: IntArray
    values: FloatArray


@dataclass(frozen=True, eq=False)
class Evidence:
    """All samples by cell and column, and what the presence judge saw in each image of the cell's concept split."""

    samples: dict[Key, dict[str, Sample]]
    images: dict[Key, Images]
    unattacked: dict[tuple[str, str, str, str, int], Key]  # a defended model (`Key.trained`) -> its attack `none`
    others: dict[Key, dict[str, Images]] = field(default_factory=dict)  # the same images by the other judges, by label
    shares: frozenset[str] = frozenset()  # columns in which each image counts or does not

    def sample(self, key: Key | None, column: str) -> Sample | None:
        """The sample of `column`, None if nothing was scored for it."""
        return self.samples.get(key, {}).get(column) if key else None

    def before(self, key: Key) -> Key | None:
        """The same defended model before the attack: budget 0 of the run, else attack `none`."""
        start = key._replace(budget=0)
        plain = start._replace(attack="none")
        return next((k for k in (start, plain) if k in self.samples), self.unattacked.get(key.trained))

    def control(self, key: Key) -> Key | None:
        """The base under the same attack, budget and seed: the positive control; the base itself if a part is back."""
        if key.attack == REMOVAL:
            return self.untouched(key)
        base = key._replace(defense="none", defense_seed=0)
        return base if base in self.samples or key.budget > 0 else self.before(base)

    def untouched(self, key: Key) -> Key | None:
        """The base before any attack."""
        base = key._replace(defense="none", defense_seed=0)
        plain = base._replace(attack="none", budget=0)
        return plain if plain in self.samples else self.before(base)


def with_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with a column `defense_seed`: 0 where it does not say that a defense was trained more than once."""
    return frame if "defense_seed" in frame else frame.assign(defense_seed=0)


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


def refuse_mixed_identities(frame: pd.DataFrame, columns: list[str], name: str) -> None:
    """Numbers of two versions of a judge are not comparable, so a concept has one identity for each metric.

    Raises:
        ValueError: rows of `frame` that agree in `columns` differ in identity.
    """
    groups = frame.groupby(columns)["identity"]
    mixed = groups.nunique(dropna=False)
    if (mixed > 1).any():
        where = mixed[mixed > 1].index[0]
        found = ", ".join(sorted(map(str, groups.get_group(where).unique())))
        raise ValueError(f"{name}: expected one identity of the metric for {where}; got {found}. Score again with one.")


def column_of(metric: str, split: str) -> str:
    """The column under which a metric's values on a split are reported."""
    if metric.startswith("sgr") and split == "concept":
        return metric.replace("sgr", SIMILARITY, 1)
    if metric.startswith(JUDGE):
        columns = {"concept": metric, "retained": metric.replace("presence", "retained_accuracy", 1)}
        columns["cross"] = metric.replace("presence", "cra", 1)
        columns[CONFIRM] = metric.replace(JUDGE, CONFIRMED, 1)
        columns["adapted"] = metric.replace("presence", "benign_adaptation", 1)
        return columns.get(split, f"{metric}_{split}")
    return metric if split == "safe" else f"{metric}_{split}"


def encode(frame: pd.DataFrame, columns: list[str]) -> IntArray:
    """A number for each row (N,), from 0 without gaps: equal rows share it, and it ascends with `columns`."""
    code = np.zeros(len(frame), dtype=np.int64)
    for column in columns:
        own, names = pd.factorize(frame[column], sort=True, use_na_sentinel=False)
        code = pd.factorize(code * len(names) + own, sort=True)[0].astype(np.int64)
    return code


def read(scores: pd.DataFrame, yes_or_no: Collection[str] = ()) -> Evidence:
    """Check and reduce the score rows. The order of rows makes no difference.

    Args:
        yes_or_no: labels of the metrics that are bounded by 0 and 1; a column of which every value is one of these two
            is a share, whose interval must not have zero width.
    """
    require(scores, SCORES, "scores")
    scores = with_runs(scores)
    _refuse_unknown_splits(scores)
    group, prompt, image = encode(scores, GROUP), encode(scores, ["prompt_id"]), encode(scores, ["image"])
    ids = prompt * (image.max(initial=0) + 1) + image
    order = np.lexsort((ids, group))
    group, ids, prompt = group[order], ids[order], prompt[order]
    twice = np.flatnonzero((np.diff(group) == 0) & (np.diff(ids) == 0))
    if len(twice):
        refuse_duplicates(scores.iloc[order[twice[0] : twice[0] + 2]], [*GROUP, "prompt_id", "image"], "scores")
    starts = _starts(group)
    heads = scores[GROUP].iloc[order[starts]]
    refuse_mixed_identities(heads, ["model", "scenario", "concept", "split", "metric"], "scores")
    values = scores["value"].to_numpy(dtype=np.float64, na_value=np.nan)[order]
    images = Images(ids, prompt, values)
    samples: dict[Key, dict[str, Sample]] = {}
    judged: dict[Key, Images] = {}
    others: dict[Key, dict[str, Images]] = {}
    for (key, split, metric, identity), part in zip(_names(heads), _parts(images, starts), strict=True):
        samples.setdefault(key, {})[column_of(metric, split)] = _sample(part, identity)
        if split == "concept" and metric.startswith(JUDGE):
            known = np.isfinite(part.values)
            seen = Images(part.ids[known], part.prompts[known], part.values[known])
            if metric == JUDGE:
                judged[key] = seen
            else:
                others.setdefault(key, {})[metric] = seen
    shares = _shares(heads, values, starts, yes_or_no)
    plain = sorted((key for key in samples if key.attack == "none"), reverse=True)  # the lowest seed is kept
    return Evidence(samples, judged, {key.trained: key for key in plain}, others, shares)


def _shares(heads: pd.DataFrame, values: FloatArray, starts: IntArray, labels: Collection[str]) -> frozenset[str]:
    """Columns of the metrics `labels` whose known values are all 0 or 1."""
    if not len(starts):
        return frozenset()
    is_other = np.logical_or.reduceat(np.isfinite(values) & (values != 0) & (values != 1), starts)
    columns = [column_of(metric, split) for metric, split in heads[["metric", "split"]].itertuples(index=False)]
    graded = {column for column, other in zip(columns, is_other, strict=True) if other}
    of_labels = {column for column, metric in zip(columns, heads["metric"], strict=True) if metric in labels}
    return frozenset(of_labels - graded)


def _starts(codes: IntArray) -> IntArray:
    """Where each run of equal codes begins."""
    return np.flatnonzero(np.diff(codes, prepend=-1)).astype(np.int64)


def _names(heads: pd.DataFrame) -> Iterator[tuple[Key, str, str, str]]:
    for name in heads.itertuples(index=False, name=None):
        split, metric, identity = name[len(KEY) :]
        yield Key(*name[: len(KEY)]), str(split), str(metric), str(identity)


def _parts(images: Images, starts: IntArray) -> Iterator[Images]:
    for start, end in pairwise([*starts, len(images.ids)]):
        yield Images(images.ids[start:end], images.prompts[start:end], images.values[start:end])


def _sample(images: Images, identity: str) -> Sample:
    """Prompt means of the images of one group; those without a value (NaN) only count as rows."""
    known = np.isfinite(images.values)
    starts = _starts(images.prompts)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(known, images.values, 0.0), starts)
    has = counts > 0
    means = sums[has] / counts[has]
    return Sample(images.prompts[starts][has], means, int(counts.sum()), len(images.ids), identity)


def _refuse_unknown_splits(scores: pd.DataFrame) -> None:
    unknown = sorted(set(scores["split"].unique()) - set(SPLITS))
    if unknown:
        raise ValueError(f"scores: expected split to be one of {', '.join(SPLITS)}; got {', '.join(unknown)}")


def aligned(sample: Sample | None, prompts: IntArray) -> FloatArray:
    """Prompt means of `sample` at the ascending `prompts` (P,), NaN where it has none."""
    if sample is not None and np.array_equal(sample.prompts, prompts):
        return sample.means
    means = np.full(len(prompts), np.nan)
    if sample is not None:
        _, at, own = np.intersect1d(prompts, sample.prompts, assume_unique=True, return_indices=True)
        means[at] = sample.means[own]
    return means
