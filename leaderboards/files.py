"""Tables as files, each complete or not at all: CSV, Markdown, Parquet."""

import os
import uuid
from pathlib import Path
from typing import Any

import pandas as pd


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write `frame` in the format of the path's suffix: .csv, .md or .parquet."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # of the mode that the umask gives
    try:
        with temporary.open("xb") as file:
            if path.suffix == ".parquet":
                frame.to_parquet(file, index=False)
            else:
                file.write(_text(frame, path.suffix).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _text(frame: pd.DataFrame, suffix: str) -> str:
    return markdown(frame) if suffix == ".md" else frame.to_csv(index=False, lineterminator="\n")


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table: numbers in three digits, right-aligned; a missing value is an empty field."""
    rules = ["---:" if pd.api.types.is_numeric_dtype(frame[name]) else "---" for name in frame]
    rows = [[_field(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [list(frame.columns), rules, *rows])


def _field(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
