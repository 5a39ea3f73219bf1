"""One field of a table as a page shows it: its text, what it is sorted by, and what is drawn beside it."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

DASH = "\N{EN DASH}"  # a missing number
SHARES = ("presence", "worst", "ceiling", "recovered", "reactivation", "retained", "effort", "benign")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a table: its text, what it is sorted by, and, for a share with an interval, where to draw it.

    name: of the column, for its style. sign, hint: a mark beside the text, and what it means. parts: the text as
    several labels. link: an anchor on the page.
    """

    text: str
    order: float | str
    span: tuple[float, float, float] | None = None
    is_number: bool = False
    badge: str = ""
    name: str = ""
    sign: str = ""
    hint: str = ""
    parts: tuple[str, ...] = ()
    link: str = ""


def is_missing(value: Any) -> bool:
    """True for None, NaN and NA."""
    return bool(pd.isna(value))


def number(value: Any, *, share: bool) -> str:
    """A number for people: two decimals for a share, else three digits; a dash where it is missing."""
    if is_missing(value):
        return DASH
    if isinstance(value, int) or (float(value).is_integer() and not share):
        return f"{int(value):,}"
    return f"{value:.2f}" if share else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def field(name: str, value: Any, low: Any = None, high: Any = None) -> Field:
    """One field of a table by the name of its column."""
    if name == "titer":
        return titer_field(value)
    if name == "status":
        return Field(
            text=str(value),
            order=str(value),
            badge="ok" if value in ("ok", "unranked: the control") else "bad",
            name=name,
        )
    if name == "flags" and isinstance(value, str):
        return Field(text=value, order=value, parts=tuple(value.split("; ")), name=name)
    if isinstance(value, str) or value is None:
        return Field(text=value or DASH, order=value or "", name=name)
    share = name.startswith(SHARES)
    text, order = number(value, share=share), "" if is_missing(value) else float(value)
    if is_missing(value) or low is None or is_missing(low) or is_missing(high):
        return Field(text=text, order=order, is_number=True)
    drawn = (clip(low), clip(value), clip(high)) if share else None
    bounds = f"[{number(low, share=share)}, {number(high, share=share)}]"
    return Field(text=f"{text} {bounds}", order=order, span=drawn, is_number=True)


def clip(value: float) -> float:
    """A share in percent, within what is drawn."""
    return round(100 * min(1.0, max(0.0, float(value))), 1)


def titer_field(value: Any) -> Field:
    """A titer as written; a censored one sorts just after the same number, and at 0 says nothing."""
    if is_missing(value):
        return Field(text=DASH, order="", is_number=True)
    text = str(value)
    bound = float(text.removeprefix(">="))
    if text.startswith(">=") and not bound:
        return Field(text="unknown", order="", is_number=True, hint="No cell at a budget above 0 can be used.")
    return Field(text=text.replace(">=", "≥ "), order=bound + 0.5 * text.startswith(">="), is_number=True)


def text_of(value: Any) -> str | None:
    """A text, or None where it is missing or empty."""
    return None if is_missing(value) or not value else str(value)
