"""Whole commands: what a run spends beside its models, a finished run again, and how quickly the command answers."""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmark.config import config
from benchmark.mini import WEIGHTS
from benchmark.model import load
from benchmark.plan.task import Task
from benchmark.runner.isolation.guard import guarded
from benchmark.runner.isolation.seal import Seal
from benchmark.session import prepare
from tests.bench.alone import command, commands
from tests.bench.table import Row
from tests.reports import fill

PART = "defense=none,defense=esd,attack=none,attack=lora"  # of the demo


def divided(words: Sequence[str], modules: Path, report: Path) -> None:
    """Run a `titer` command here, after importing the modules listed; write its times and the modules it loaded."""
    from benchmark.cli import main

    started = time.perf_counter()
    for name in json.loads(modules.read_text()) if modules.is_file() else ():
        with suppress(Exception):  # some names in sys.modules are no modules of their own
            importlib.import_module(name)
    imported = time.perf_counter()
    sys.argv = ["titer", *words]
    try:
        main()
    finally:
        spent = {"imports": imported - started, "rest": time.perf_counter() - imported}
        report.write_text(json.dumps(spent | {"modules": list(sys.modules)}))


def in_parts(words: Sequence[object], folder: Path, loaded: Sequence[str]) -> dict[str, Any]:
    """A command in a process of its own, its imports made first; what `divided` wrote, and `wall` seconds in all.

    Raises:
        RuntimeError: it fails.
    """
    modules, report = folder / "modules.json", folder / "report.json"
    modules.write_text(json.dumps(list(loaded)))
    call = [sys.executable, "-m", "tests.bench.runs", str(modules), str(report), *map(str, words)]
    started = time.perf_counter()
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"expected titer {words[0]} to end well, got {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(report.read_text())
    return found | {"wall": wall}


def overhead(source: str = "demo", only: str = PART) -> Sequence[Row]:
    """What a run spends on anything but its models: the time of its tasks is in its records."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["run", source, *(["--only", only] if only else []), "--device", "cpu"]
        small = ["run", "smoke", "--out", folder / "s" / "out", "--store", folder / "s" / "store", "--device", "cpu"]
        loaded = in_parts(small, folder, [])["modules"] if source == "demo" else []
        found = in_parts([*words, "--out", folder / "out", "--store", folder / "store"], folder, loaded)
        records = pd.read_csv(folder / "out" / "records.csv")
        looks = looking(Path(config.load(source).raw.model)) if source != "demo" else looking(WEIGHTS / "pipeline")
    model, tasks = float(records["seconds"].sum()), len(records)
    others = found["rest"] - model
    what = f"a run of {source}" + (f" with --only {only}" if only else "")
    note = (
        f"{found['rest']:.1f} s, of which {model:.1f} s in models; {tasks} tasks, {others / tasks * 1000:.0f} ms each"
    )
    start = found["wall"] - found["rest"]
    return [
        Row(
            what=f"{what}: not model work, without imports",
            value=100 * others / found["rest"],
            unit="%",
            target="<= 3",
            note=note,
            more=found | {"model": model, "tasks": tasks, "modules": []},
        ),
        watched(what, records, looks, found["rest"]),
        Row(what=f"{what}: start and imports", value=start, unit="s", note="once a command, whatever the run's size"),
    ]


def looking(folder: Path) -> dict[bool, float]:
    """Seconds of both looks at what a task's plug-in may change, with a base and without; the least of some."""
    task, seal = Task(kind="defend", plugin="x", version=1, base="x"), Seal(load(folder))
    spent: dict[bool, list[float]] = {True: [], False: []}
    for with_base in (True, False) * 7:
        started = time.perf_counter()
        guarded(task, seal if with_base else None, lambda: None)
        spent[with_base].append(time.perf_counter() - started)
    return {with_base: min(times) for with_base, times in spent.items()}


def watched(what: str, records: pd.DataFrame, looks: dict[bool, float], seconds: float) -> Row:
    """The share of a run that goes into looking at what plug-ins changed."""
    models = int(records["kind"].isin(["defend", "attack", "generate"]).sum())
    value = 100 * (models * looks[True] + (len(records) - models) * looks[False]) / seconds
    note = f"{1000 * looks[True]:.0f} ms for a task with a model, {1000 * looks[False]:.1f} ms for another"
    return Row(what=f"{what}: looks at what plug-ins changed", value=value, unit="%", target="<= 1", note=note)


def picture(is_present: bool, shade: float) -> torch.Tensor:
    """An image of the demo's size."""
    image = torch.full((3, 64, 64), int(255 * shade), dtype=torch.uint8)
    image[0, 16:48, 16:48] = 255 * is_present
    return image


def again(source: str = "demo", *, runs: int = 5) -> Sequence[Row]:
    """The demo once more when everything is there: results of every task are made up, in the real format."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = prepare(config.load(source), source=source, out=folder / "out", store=folder / "store")
        fill(job.plan, folder / "store", picture)
        words = ["run", source, "--out", folder / "out", "--store", folder / "store", "--device", "cpu"]
        what = f"titer run {source}, finished before: {len(job.plan.tasks)} tasks"
        return [commands(what, words, "<= 3", runs=runs, expect="ran 0,")]


def answers(*, runs: int = 7) -> Sequence[Row]:
    """The command's answers that need no model."""
    lists = ("defenses", "attacks", "metrics", "concepts", "models", "presets")
    slowest = max(lists, key=lambda what: command(["list", what])[0])
    return [
        commands("titer --help", ["--help"], "<= 0.7", runs=runs),
        commands(f"titer list {slowest}, the slowest of its lists", ["list", slowest], "<= 0.7", runs=runs),
    ]


if __name__ == "__main__":
    divided(sys.argv[3:], Path(sys.argv[1]), Path(sys.argv[2]))
