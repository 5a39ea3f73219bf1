"""The curves of a large board, drawn by a second process while the first does the rest of the page.

    python -m benchmark.report.sketch    panels on the standard input, their SVG as JSON on the standard output

A panel takes matplotlib a tenth of a second; a board of many concepts and attacks has dozens.
"""

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import pandas as pd

from benchmark.errors import TiterError

MANY = 8  # panels: for fewer, a second process would start longer than it draws


class Sketch:
    """Curves, drawn here or, of a board of many panels, elsewhere. To be closed: `with Sketch(count) as sketch`.

    Args:
        count: how many panels there will be, or about; a second process starts now if they are many.
    """

    def __init__(self, count: int = 0) -> None:
        command = [sys.executable, "-m", __name__]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes) if count > MANY else None  # ours, with no word of a user's
        self.asked: tuple[Sequence[pd.DataFrame], dict[str, Any]] = [], {}

    def __enter__(self) -> "Sketch":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()

    def ask(self, parts: Sequence[pd.DataFrame], labels: Sequence[str], looks: Mapping[str, Any]) -> None:
        """Say which panels are wanted: their rows, labels, and how each defense looks."""
        self.asked = parts, {"labels": list(labels), "looks": {name: vars(look) for name, look in looks.items()}}
        if self.process and self.process.stdin:
            with suppress(BrokenPipeError):  # it died: `drawn` says of what
                send(self.process.stdin, *self.asked)
            self.process.stdin = None

    def drawn(self) -> list[str]:
        """The SVG of each panel.

        Raises:
            TiterError: the other process failed.
        """
        if not self.process:
            return draw(*self.asked)
        text, complaint = self.process.communicate()
        if self.process.returncode:
            raise TiterError(f"expected drawn curves, got {complaint.decode().strip()[-500:]}: report this.")
        found: list[str] = json.loads(text)
        return found


def send(pipe: IO[bytes], parts: Sequence[pd.DataFrame], more: Mapping[str, Any]) -> None:
    """Write panels: a line of JSON, then all rows as one Feather file."""
    pipe.write(json.dumps(more).encode() + b"\n")
    buffer = io.BytesIO()
    rows = [part.assign(panel=i) for i, part in enumerate(parts)]
    (pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()).to_feather(buffer)
    pipe.write(buffer.getvalue())
    pipe.flush()
    pipe.close()


def receive(pipe: IO[bytes]) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """What `send` wrote."""
    more = json.loads(pipe.readline())
    rows = pd.read_feather(io.BytesIO(pipe.read()))
    parts = [part.drop(columns="panel") for _, part in rows.groupby("panel", sort=True)] if len(rows) else []
    return parts, more


def draw(parts: Sequence[pd.DataFrame], more: Mapping[str, Any]) -> list[str]:
    """The SVG of each panel, made here."""
    from benchmark.report import figures

    looks = {name: figures.Look(**look | {"dash": dash(look["dash"])}) for name, look in more["looks"].items()}
    labels = enumerate(more["labels"])
    return [figures.curve_svg(part, looks, f"c{i}", label) for part, (i, label) in zip(parts, labels, strict=True)]


def dash(found: Any) -> Any:
    """A dash pattern; JSON makes lists of matplotlib's tuples."""
    return found if isinstance(found, str) else (found[0], tuple(found[1]))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(draw(*receive(sys.stdin.buffer))))
