"""Tables as files, each complete or not at all: CSV, Markdown, Parquet.

Texts in them may be anybody's: names, reasons, what an exception said. A spreadsheet would compute what begins like a
formula, and a page would follow markup, so CSV and Markdown are written without either; Parquet has them as they are.
"""

import os
import re
import uuid
from pathlib import Path
from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


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
    return markdown(frame) if suffix == ".md" else harmless(frame).to_csv(index=False, lineterminator="\n")


def harmless(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a `'` before each text that a spreadsheet would take for a formula; numbers stay numbers."""
    texts = {name: column.map(_quoted) for name, column in frame.items() if not pd.api.types.is_numeric_dtype(column)}
    return frame.assign(**{str(name): column for name, column in texts.items()}).rename(columns=_quoted)


def _quoted(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    line = value.replace("\r", " ")  # alone it ends a row for some readers, and no writer quotes it
    return f"'{line}" if value.startswith(FORMULA) and not NUMBER.fullmatch(value) else line


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table: numbers in three digits, right-aligned; a missing value is an empty field."""
    rules = ["---:" if pd.api.types.is_numeric_dtype(frame[name]) else "---" for name in frame]
    rows = [[_field(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    head = [_field(name) for name in frame.columns]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rules, *rows])


def _field(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return re.sub(r"([\\|<\[`])", r"\\\1", re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(value)))
