"""The tables of a board once more from its `cells`, where the scores of single images are gone.

A cell says how many of its prompts' images show the concept, not which. Its hits are laid on prompts in an order drawn
for each defense, concept, attack and budget, the same for each attack seed: as if seeds shared all that makes a prompt
easy, and defenses nothing of it. So intervals for these concepts come out too wide rather than too narrow, and those
for concepts in general, which go by the means of concepts, as they are. Point numbers stay what they were.

What needs single images is missing: the reactivation rate. What this leaves as it was is taken from the old tables:
costs, judges, and where the variance comes from.
"""

import zlib
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from leaderboards.board import Board, tables
from leaderboards.bootstrap import Draws, FloatArray
from leaderboards.evidence import COSTS, KEY, REMOVAL, ROOT, Evidence, Images, Key, Sample, with_runs
from leaderboards.row import ONE_RUN, REACTIVATION

COLUMNS = {"presence_after": "presence", "retained_accuracy": "retained_accuracy", "confirmed": "confirmed"}
KEPT = ["second_judge", "judge_disagreement", "judge_kappa", "judge_tpr", "judge_fpr", "measured_with"]
PLACED = ["model", "scenario", "defense"]


def rebuild(
    cells: pd.DataFrame,
    leaderboard: pd.DataFrame,
    variance: pd.DataFrame,
    *,
    kinds: Mapping[str, str],
    aimed: Collection[str] = (),
    draws: int = 1000,
    utility_floor: float = 0.8,
) -> Board:
    """The tables again.

    Args:
        cells: the table of that name of an old board, one row for each cell and number.
        leaderboard, variance: its other tables from which something is kept.
        kinds: the kind of each attack, by label: `weights`, `edit`, `prompts`, `sampling`, `beside` or `none`.
        aimed: labels of the attacks that the config aims at certain defenses.

    Raises:
        ValueError: an attack of the cells has no kind.
    """
    kinds = {REMOVAL: REMOVAL, **kinds}
    if unknown := sorted(set(cells["attack"]) - set(kinds)):
        raise ValueError(f"expected a kind for each attack, got none for {', '.join(unknown)}: name it in `kinds`.")
    cells = with_runs(cells).sort_values(KEY, kind="stable", ignore_index=True)
    named = cells.drop_duplicates(KEY)[[*KEY, "key"]]
    plan = named.assign(kind=named["attack"].map(dict(kinds)), aimed=named["attack"].isin(list(aimed)))
    cost = leaderboard[[*PLACED, "defend_seconds", "peak_memory_mib", "fidelity"]].assign(concept="all")[COSTS]
    made = tables(evidence_of(cells), cells, plan, cost, Draws(draws, 0), utility_floor=utility_floor)
    rows = made.leaderboard.set_index(PLACED)
    old = leaderboard.set_index(PLACED).reindex(rows.index)
    rows[KEPT] = old[KEPT]
    again = rows["flags"].fillna("").str.contains(ONE_RUN)
    told = zip(old["flags"].fillna(""), again, strict=True)
    rows["flags"] = [
        "; ".join(filter(None, (flags, ONE_RUN * (more and ONE_RUN not in flags)))) for flags, more in told
    ]
    found = rows.reset_index()[list(made.leaderboard.columns)]
    return Board(
        cells=cells,
        leaderboard=found.drop(columns=REACTIVATION),
        matrix=made.matrix,
        curves=made.curves.drop(columns=REACTIVATION[:-1]),
        comparisons=made.comparisons,
        pareto=made.pareto,
        variance=variance,
        orders=made.orders,
    )


def evidence_of(cells: pd.DataFrame) -> Evidence:
    """Prompt means as the cells' values and numbers of prompts allow, one image a prompt."""
    samples: dict[Key, dict[str, Sample]] = {}
    images: dict[Key, Images] = {}
    told = cells[cells["number"].isin(COLUMNS) & cells["value"].notna()]
    for row in told.to_dict("records"):
        key, column, count = Key(*(row[name] for name in KEY)), COLUMNS[row["number"]], int(row["prompts"])
        ids = np.arange(count, dtype=np.int64)
        means = laid(float(row["value"]), count, f"{column}/{'/'.join(map(str, key[: len(ROOT)]))}")
        samples.setdefault(key, {})[column] = Sample(ids, means, int(row["n"]), int(row["n"]), str(row["identity"]))
        if column == "presence":
            images[key] = Images(ids, ids, means)
    plain = sorted((key for key in samples if key.attack == "none"), reverse=True)
    return Evidence(samples, images, {key.trained: key for key in plain})


def laid(value: float, prompts: int, order: str) -> FloatArray:
    """Prompt means (P,) of mean `value`: so many ones, and a remainder, in an order named by a text."""
    hits = np.clip(value * prompts - np.arange(prompts), 0.0, 1.0)
    places = np.random.default_rng(zlib.crc32(order.encode())).permutation(prompts)
    means: FloatArray = hits[places]
    return means
