"""python -m tests.bench: measure, print the table, keep it in build/."""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.bench import executors, gpu, runs, sampling, scale, training
from tests.bench.table import Line, Row, as_json, machine, markdown

LINES = (
    Line("generate", sampling.rows),
    Line("lora", training.published),
    *(Line(f"step-{name}", partial(training.steps_of, name)) for name in training.NAMES),
    Line("overhead", runs.overhead),
    Line("again", runs.again),
    Line("answers", runs.answers),
    Line("plan", scale.planning),
    Line("store", scale.stored),
    Line("board", scale.boards),
    Line("ray", executors.workers),
    Line("schedule", executors.schedule),
    Line("gpu", gpu.rows),
)


def main(words: Sequence[str] | None = None) -> int:
    """Measure the lines asked for, or all; exit code 1 if a measurement fails, 0 even where a target is missed."""
    names = [line.name for line in LINES]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="one line; repeat for more")
    parser.add_argument("--list", action="store_true", help="name the lines and stop")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder of bench.md and bench.json")
    asked = parser.parse_args(words)
    if asked.list:
        say("\n".join(names))
        return 0
    found, failed, started = dict[str, Sequence[Row]](), False, time.perf_counter()
    facts, spent = machine(), 0.0
    for line in LINES:
        if asked.only and line.name not in asked.only:
            continue
        begun = time.perf_counter()
        try:
            found[line.name] = line.measure()
        except Exception as error:  # the other lines can still be measured
            failed = True
            found[line.name] = [Row(what=line.name, value=None, note=f"failed: {type(error).__name__}: {error}")]
        print(f"{line.name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
        spent = time.perf_counter() - started
        asked.out.mkdir(parents=True, exist_ok=True)  # after each line: a stopped bench keeps what it measured
        (asked.out / "bench.md").write_text(markdown(found, facts, spent))
        (asked.out / "bench.json").write_text(as_json(found, facts, spent))
    say(markdown(found, facts, spent))
    return int(failed)


def say(text: str) -> None:
    """Print it."""
    print(text)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
