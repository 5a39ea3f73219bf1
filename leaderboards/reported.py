"""What papers and public boards report, beside what a run measured. The columns are told in `reported/README.md`.

    reported = value x 0.01 where the unit is percent, x 100 where it is cosine (as clip_score has it), else value

Two numbers stand beside each other where defense, attack and number have one name. What they differ in otherwise is
said in the column `differs`, and they count as comparable only where the source's row says so and nothing differs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

REPORTED = Path(__file__).parent / "reported"
COLUMNS = ["source", "arxiv", "table", "defense", "attack", "setting", "concept", "model", "metric", "number", "value"]
COLUMNS += ["unit", "certainty", "comparable", "note"]
FACTORS = {"percent": 0.01, "share": 1.0, "cosine": 100.0, "distance": 1.0}
KNOWN = {"unit": tuple(FACTORS), "certainty": ("read", "second-hand", "reconstructed"), "comparable": ("yes", "no")}
MEASURED = ("ok", "invalid")  # the statuses of cells whose numbers mean what they say
BESIDE = ["defense", "attack", "number", "concept", "model", "budget", "measured", "reported", "reported_concept"]
BESIDE += ["reported_model", "metric", "setting", "source", "table", "certainty", "comparable", "differs", "note"]


def read(folder: Path = REPORTED) -> pd.DataFrame:
    """All reported numbers; `value` as reported, and empty texts where nothing is known.

    Raises:
        ValueError: a file lacks a column, or a value is none of those that it may be.
    """
    frames = []
    for file in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        if list(frame) != COLUMNS:
            got = ", ".join(map(str, frame))
            raise ValueError(f"expected the columns {', '.join(COLUMNS)} in {file}, got {got}: mend it.")
        for column, known in KNOWN.items():
            wrong = sorted(set(frame[column]) - set(known))
            if wrong:
                raise ValueError(f"expected {column} to be one of {', '.join(known)} in {file}, got {wrong[0]!r}.")
        frames.append(frame.assign(value=pd.to_numeric(frame["value"])))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def beside(cells: pd.DataFrame, reported: pd.DataFrame) -> pd.DataFrame:
    """One row for each measured number that somebody reports, those with the fewest differences first.

    Args:
        cells: a board's tidy cells. Of an attack, the largest budget counts; seeds are averaged.
        reported: what `read` returns.
    """
    theirs = reported[reported["number"] != ""].rename(columns={"concept": "reported_concept"})
    theirs = theirs.rename(columns={"model": "reported_model"})
    theirs = theirs.assign(reported=theirs["value"] * theirs["unit"].map(FACTORS)).drop(columns="value")
    both = measured(cells).merge(theirs, on=["defense", "attack", "number"])
    if both.empty:
        return pd.DataFrame(columns=BESIDE)
    both["differs"] = [differences(row) for row in both.to_dict("records")]
    both["comparable"] = [
        "yes" if said == "yes" and not differs else "no"
        for said, differs in zip(both["comparable"], both["differs"], strict=True)
    ]
    order = both["differs"].str.count(",").where(both["differs"] != "", -1)
    return both.assign(order=order).sort_values(["order", *BESIDE[:5]], kind="stable")[BESIDE].reset_index(drop=True)


def measured(cells: pd.DataFrame) -> pd.DataFrame:
    """Each number of each defense, attack, concept and model, at the attack's largest budget, mean over seeds.

    What is measured before an attack is taken where there is none.
    """
    found = cells[cells["status"].isin(MEASURED) & cells["value"].notna()]
    attacked = found["number"] == "presence_after"
    found = found[
        (attacked & (found["budget"] > 0)) | (~attacked & (found["budget"] == 0) & (found["attack"] == "none"))
    ]
    key = ["defense", "attack", "number", "concept", "model"]
    last = found[found["budget"] == found.groupby(key)["budget"].transform("max")]
    return last.groupby([*key, "budget"])["value"].mean().rename("measured").reset_index()


def differences(row: Mapping[Any, Any]) -> str:
    """In what a measured and a reported number differ, as far as names tell; the settings, unless they are stated."""
    found = [name for name in ("concept", "model") if row[name] != row[f"reported_{name}"]]
    return ", ".join([*found, *(["settings"] if row["comparable"] != "yes" else [])])
