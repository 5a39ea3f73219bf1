"""The figures of a large board, drawn by a second process while the first does the rest of the page.

    python -m benchmark.results.report.sketch    what to draw on the standard input, SVG as JSON on the standard output

A panel takes matplotlib a tenth of a second; a board of many concepts and attacks has dozens.
"""

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import pandas as pd

from benchmark.errors import TiterError
from benchmark.results.report.series import Look

MANY = 8  # panels: for fewer, a second process would start longer than it draws


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure that is wanted: presence over budget, or, with a `utility`, worst presence against it.

    unit: what the budget counts.
    """

    rows: pd.DataFrame
    label: str
    utility: str = ""
    unit: str = ""


class Sketch:
    """Figures, drawn here or, if there are many, elsewhere. To be closed: `with Sketch(count) as sketch`.

    Args:
        count: how many panels there will be, or about; a second process starts now if they are many.
    """

    def __init__(self, count: int = 0) -> None:
        command = [sys.executable, "-m", __name__]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes) if count > MANY else None
        self.panels: Sequence[Panel] = []
        self.looks: Mapping[str, Look] = {}

    def __enter__(self) -> "Sketch":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()

    def ask(self, panels: Sequence[Panel], looks: Mapping[str, Look]) -> None:
        """Say which panels are wanted, and how each defense looks."""
        self.panels, self.looks = panels, looks
        if self.process and self.process.stdin:
            with suppress(BrokenPipeError):  # it died: `drawn` says of what
                send(self.process.stdin, panels, looks)
            self.process.stdin = None

    def drawn(self) -> list[str]:
        """The SVG of each panel.

        Raises:
            TiterError: the other process failed.
        """
        if not self.process:
            return draw(self.panels, self.looks)
        text, complaint = self.process.communicate()
        if self.process.returncode:
            raise TiterError(f"expected drawn figures, got {complaint.decode().strip()[-500:]}: report this.")
        found: list[str] = json.loads(text)
        return found


def send(pipe: IO[bytes], panels: Sequence[Panel], looks: Mapping[str, Look]) -> None:
    """Write a line of JSON, then the rows of each panel as Feather."""
    frames = [feather(panel.rows) for panel in panels]
    named = [
        {"label": p.label, "utility": p.utility, "unit": p.unit, "bytes": len(f)}
        for p, f in zip(panels, frames, strict=True)
    ]
    pipe.write(json.dumps({"panels": named, "looks": {name: vars(look) for name, look in looks.items()}}).encode())
    pipe.write(b"\n")
    pipe.write(b"".join(frames))
    pipe.close()


def feather(rows: pd.DataFrame) -> bytes:
    """A frame as Feather, without its index."""
    buffer = io.BytesIO()
    rows.reset_index(drop=True).to_feather(buffer)
    return buffer.getvalue()


def receive(pipe: IO[bytes]) -> tuple[list[Panel], dict[str, Look]]:
    """What `send` wrote."""
    told = json.loads(pipe.readline())
    panels = [
        Panel(
            rows=pd.read_feather(io.BytesIO(pipe.read(one["bytes"]))),
            label=one["label"],
            utility=one["utility"],
            unit=one["unit"],
        )
        for one in told["panels"]
    ]
    return panels, {name: Look(**look | {"dash": dash(look["dash"])}) for name, look in told["looks"].items()}


def dash(found: Any) -> Any:
    """A dash pattern; JSON makes lists of matplotlib's tuples."""
    return found if isinstance(found, str) else (found[0], tuple(found[1]))


def draw(panels: Sequence[Panel], looks: Mapping[str, Look]) -> list[str]:
    """The SVG of each panel, made here."""
    from benchmark.results.report import figures

    return [
        figures.pareto_svg(panel.rows, panel.utility, looks, f"p{i}", panel.label)
        if panel.utility
        else figures.curve_svg(panel.rows, looks, f"c{i}", panel.label, panel.unit)
        for i, panel in enumerate(panels)
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(draw(*receive(sys.stdin.buffer))))
