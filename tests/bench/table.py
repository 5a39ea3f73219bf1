"""The lines of the table, and how they are written."""

import json
import operator
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from tests.bench.paired import Ratio

HOLDS = {">=": operator.ge, "<=": operator.le}
PACKAGES = ("titer", "torch", "diffusers", "transformers", "peft", "numpy", "pandas")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        what: in words.
        value: the figure; None where it was not measured, and `note` says why.
        unit: `x` for a ratio of times, `s`, `MB`, `%`, ...
        target: such as `>= 1.05`; empty for a figure without one.
        low, high: its interval, if it has one.
        note: how it came about.
        more: what the JSON keeps beside it.
    """

    what: str
    value: float | None
    unit: str = "x"
    target: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a figure."""
        if self.value is None or not self.target:
            return None
        sign, _, bound = self.target.partition(" ")
        return bool(HOLDS[sign](self.value, float(bound)))

    def cells(self) -> list[str]:
        """The row of the Markdown table."""
        inside = "" if self.low is None or self.high is None else f" [{number(self.low)}, {number(self.high)}]"
        shown = "not measured" if self.value is None else f"{number(self.value)} {self.unit}{inside}"
        verdict = {True: "yes", False: "**no**", None: ""}[self.met]
        return [self.what, shown, self.target, verdict, self.note]


def compared(what: str, found: Ratio, *, target: str = "", note: str = "") -> Row:
    """The row of a ratio."""
    times = f"{number(found.ours)} s against {number(found.theirs)} s, {found.pairs} pairs"
    times += f"; of processor time {number(found.processor)} x"
    return Row(
        what=what,
        value=found.value,
        low=found.low,
        high=found.high,
        target=target,
        note="; ".join(filter(None, (times, note))),
        more=asdict(found),
    )


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Line:
    """One measurement that can be asked for by name: it gives one row or more."""

    name: str
    measure: Callable[[], Sequence[Row]]


def machine() -> dict[str, Any]:
    """What the figures depend on, in general words."""
    import torch

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def markdown(found: dict[str, Sequence[Row]], facts: dict[str, Any], seconds: float) -> str:
    """The table, under one line about the machine."""
    head = ["line", "figure", "measured", "target", "met", "how"]
    rows = [[f"`{name}`", *row.cells()] for name, rows in found.items() for row in rows]
    about = (
        f"{facts['cores']} cores, {facts['processor']}, {facts['threads']} threads, accelerator: "
        f"{facts['accelerator']}; torch {facts['versions']['torch']}, diffusers {facts['versions']['diffusers']}; "
        f"{seconds:.0f} s in all."
    )
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join([about, "", *lines, ""])


def as_json(found: dict[str, Sequence[Row]], facts: dict[str, Any], seconds: float) -> str:
    """Everything, for programs."""
    rows = [{"line": name, **asdict(row), "met": row.met} for name, rows in found.items() for row in rows]
    return json.dumps({"machine": facts, "seconds": round(seconds, 1), "rows": rows}, indent=1)
