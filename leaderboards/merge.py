"""The tables of several runs as those of one, if they may be compared.

What two runs share (the control, say) is taken once, from the first run that has it. A row of the leaderboard is the
same in a merged board as alone, as long as no other run adds cells of the same defense.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from leaderboards.evidence import CELLS, COSTS, DISTANCES, KEY, SCORES, encode, require, with_runs

CONCEPT = ["scenario", "concept"]
GROUP = [*KEY, "split", "metric"]  # what is taken from one run as a whole


@dataclass(frozen=True, eq=False)
class Tables:
    """The frames of one run, as `board.build` takes them.

    source: what messages call the run: its name or folder. sampling: what decides how images are drawn (sampler,
    steps, guidance, size); a setting that one run does not name is not compared. yes_or_no: labels of the metrics that
    are bounded by 0 and 1.
    """

    scores: pd.DataFrame
    cells: pd.DataFrame
    costs: pd.DataFrame
    distances: pd.DataFrame | None
    source: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    yes_or_no: frozenset[str] = frozenset()


class IncomparableError(ValueError):
    """Two runs do not belong on one board; the message says why, and what differs, in one line."""


def combine(tables: Sequence[Tables]) -> Tables:
    """The tables of all runs together.

    Raises:
        IncomparableError: two runs differ in sampling, in the judge or another metric's identity, in the prompts of a
            concept, in how many images they take of a prompt, or in a model under one name.
        ValueError: there are no tables, or a frame lacks a column.
    """
    if not tables:
        raise ValueError("combine: expected the tables of at least one run, got none.")
    for one in tables:
        _check_columns(one)
    are_told = any("defense_seed" in one.cells for one in tables)
    tables = [_with_runs(one) for one in tables]
    facts = [_Facts.of(one) for one in tables]
    for i, later in enumerate(facts):
        for earlier in facts[:i]:
            _refuse_incomparable(earlier, later)
    merged = Tables(
        scores=_first(tables, "scores", GROUP, "value"),
        cells=_cells(tables),
        costs=_first(tables, "costs", COSTS[:4], None),
        distances=_first(tables, "distances", [*KEY, "metric"], "value"),
        source=", ".join(dict.fromkeys(one.source for one in tables)),
        sampling={name: value for one in reversed(tables) for name, value in one.sampling.items()},
        yes_or_no=frozenset[str]().union(*(one.yes_or_no for one in tables)),
    )
    return merged if are_told else _without_runs(merged)


def _with_runs(tables: Tables) -> Tables:
    distances = None if tables.distances is None else with_runs(tables.distances)
    return replace(tables, scores=with_runs(tables.scores), cells=with_runs(tables.cells), distances=distances)


def _without_runs(tables: Tables) -> Tables:
    scores, cells = (frame.drop(columns="defense_seed") for frame in (tables.scores, tables.cells))
    distances = None if tables.distances is None else tables.distances.drop(columns="defense_seed")
    return replace(tables, scores=scores, cells=cells, distances=distances)


def _check_columns(tables: Tables) -> None:
    columns = {"scores": SCORES, "cells": CELLS, "costs": COSTS, "distances": DISTANCES}
    for name, needed in columns.items():
        if (frame := getattr(tables, name)) is not None:
            require(frame, needed, f"{name} of {tables.source}")


@dataclass(frozen=True)
class _Facts:
    """What must agree. Each maps a name for messages to what was found under it."""

    source: str
    sampling: Mapping[str, Any]
    identities: dict[str, frozenset[str]]
    prompts: dict[str, frozenset[str]]
    images: dict[str, int]
    starts: dict[str, frozenset[str]]  # keys of the images before any attack

    @classmethod
    def of(cls, tables: Tables) -> "_Facts":
        scores = tables.scores
        identities = _unique(scores, [*CONCEPT, "split", "metric"], "identity")
        if tables.distances is not None:
            identities |= _unique(tables.distances, [*CONCEPT, "metric"], "identity")
        numbers = scores.groupby([*CONCEPT, "split"])["image"].nunique()
        images = {_name(name): int(count) for name, count in numbers.items()}
        prompts = _unique(scores, [*CONCEPT, "split"], "prompt_id")
        starts = tables.cells[(tables.cells["budget"] == 0) & tables.cells["key"].astype(bool)]
        made = _unique(starts, KEY[:4], "key")
        return cls(tables.source, tables.sampling, identities, prompts, images, made)


def _unique(frame: pd.DataFrame, columns: list[str], of: str) -> dict[str, frozenset[str]]:
    rows = frame[[*columns, of]].drop_duplicates()
    return {_name(name): frozenset(map(str, part)) for name, part in rows.groupby(columns)[of]}


def _name(name: Any) -> str:
    return "/".join(map(str, name))


def _refuse_incomparable(a: _Facts, b: _Facts) -> None:
    for what, theirs, ours in _differences(a, b):
        raise IncomparableError(
            f"expected runs that may be compared, got {a.source} and {b.source} with different {what}: "
            f"{theirs} and {ours}. Run or score one of them again like the other, or keep two boards."
        )


def _differences(a: _Facts, b: _Facts) -> Iterator[tuple[str, str, str]]:
    """What differs, and how it is in `a` and in `b`."""
    for name in sorted(a.sampling.keys() & b.sampling.keys()):
        if a.sampling[name] != b.sampling[name]:
            yield f"sampling ({name})", str(a.sampling[name]), str(b.sampling[name])
    for name in sorted(a.identities.keys() & b.identities.keys()):
        if a.identities[name] != b.identities[name]:
            yield f"identities of the metric {name}", _listed(a.identities[name]), _listed(b.identities[name])
    for name in sorted(a.prompts.keys() & b.prompts.keys()):
        if a.prompts[name] != b.prompts[name]:
            own, other = len(a.prompts[name] - b.prompts[name]), len(b.prompts[name] - a.prompts[name])
            yield f"prompts for {name}", f"{own} that only the first has", f"{other} that only the second has"
        if a.images[name] != b.images[name]:
            yield f"numbers of images of a prompt for {name}", str(a.images[name]), str(b.images[name])
    for name in sorted(a.starts.keys() & b.starts.keys()):
        if not a.starts[name] & b.starts[name]:
            yield f"models under the name {name}", _listed(a.starts[name]), _listed(b.starts[name])


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _cells(tables: Sequence[Tables]) -> pd.DataFrame:
    """Each cell once: the first that is `ok`, else the first there is."""
    frames = [one.cells.assign(_run=run) for run, one in enumerate(tables)]
    every = pd.concat(frames, ignore_index=True)
    order = every.assign(_bad=every["status"] != "ok").sort_values(["_bad", "_run"], kind="stable")
    return order.drop_duplicates(KEY).sort_index()[list(tables[0].cells.columns)].reset_index(drop=True)


def _first(tables: Sequence[Tables], name: str, group: list[str], value: str | None) -> Any:
    """The frames `name` of all runs together, each `group` of rows from the first run that has it.

    Raises:
        IncomparableError: a group that several runs have differs in `value`, and the cell's key too. Under one key,
            differences are those of rounding on other hardware.
    """
    frames = [frame.assign(_run=run) for run, one in enumerate(tables) if (frame := getattr(one, name)) is not None]
    if not frames:
        return None
    every = pd.concat(frames, ignore_index=True)
    code, run = encode(every, group), every["_run"].to_numpy()
    first = np.full(code.max(initial=-1) + 1, len(tables))
    np.minimum.at(first, code, run)
    again = run != first[code]
    if value is not None and again.any():
        _refuse_other_images(tables, every[np.isin(code, code[again])], value)
    return every[~again].drop(columns="_run").reset_index(drop=True)


def _refuse_other_images(tables: Sequence[Tables], shared: pd.DataFrame, value: str) -> None:
    """Raise IncomparableError if a cell that several runs have was made in different ways, and looks different."""
    row = [
        name
        for name in (*KEY, *SCORES, *DISTANCES)
        if name in shared and name not in ("value", "ci_low", "ci_high", "n")
    ]
    spread = shared.groupby(list(dict.fromkeys(row)), dropna=False)[value].agg(["min", "max"])
    differing = spread[~np.isclose(spread["min"], spread["max"], rtol=1e-6, atol=1e-9, equal_nan=True)]
    if differing.empty:
        return
    cells = set(differing.reset_index()[KEY].itertuples(index=False, name=None))
    keys: dict[Any, dict[str, str]] = {}
    for one in tables:
        for *cell, key in one.cells[[*KEY, "key"]].itertuples(index=False, name=None):
            if tuple(cell) in cells:
                keys.setdefault(tuple(cell), {}).setdefault(str(key), one.source)
    for cell, found in sorted(keys.items()):
        if len(found) > 1:
            raise IncomparableError(
                f"expected the same images for the cell {_name(cell)}, got others in {' and in '.join(found.values())}:"
                f" their keys are {' and '.join(found)}. Give one of the methods another name with `as:`."
            )
