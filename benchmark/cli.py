"""The command `titer`. The only place that prints.

Exit codes: 0 done, 1 some cells failed, 2 the input is wrong.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from benchmark import config as configs
from benchmark.errors import ConfigError, InputError, TiterError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Source = Annotated[str, typer.Argument(help="A preset (see `titer list presets`) or a YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run's tables; default runs/<name>.")]
StoreAt = Annotated[Path, typer.Option("--store", help="Folder of all results, shared by runs.")]
Only = Annotated[str, typer.Option(help="Keep some labels: defense=esd,attack=lora,concept=cat.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]


def refuse(error: Exception) -> NoReturn:
    """Print one line and leave with 2."""
    err.print(f"[red]{type(error).__name__}[/]: {escape(' '.join(str(error).split()))}")
    raise typer.Exit(2)


def chosen(source: str, only: str) -> configs.Config:
    """The config, restricted to `only`."""
    wanted: dict[str, tuple[str, ...]] = {}
    for part in filter(None, only.split(",")):
        key, _, label = part.partition("=")
        if not label:
            raise ConfigError(f"expected --only key=label,key=label, got {part!r}: for example defense=esd.")
        wanted[key] = (*wanted.get(key, ()), label)
    return configs.restrict(configs.load(source), wanted)


@app.command()
def run(
    source: Source,
    out_folder: Out = None,
    store: StoreAt = Path("store"),
    only: Only = "",
    device: Device = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images at once; changes no number.")] = 64,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Run a matrix: compute what is missing, then write and show the leaderboard. The same command resumes."""
    from benchmark import session

    try:
        job = session.prepare(chosen(source, only), source=source, out=out_folder, store=store)
        if dry_run:
            show_plan(job, as_json=False)
            return
        from benchmark.watch import Bars

        with Bars(err, job.left) as bars:
            outcome = job.run(bars, device=device, batch=batch)
    except InputError as error:
        refuse(error)
    show_board(job.board, job.out)
    counts = {what: len(getattr(outcome, what)) for what in ("ran", "found", "failed", "skipped")}
    out.print(", ".join(f"{what} {count}" for what, count in counts.items()))
    for key, trace in outcome.failed.items():
        err.print(f"[red]failed[/] {escape(job.plan.tasks[key].label)}: {escape(trace.strip().rpartition(chr(10))[2])}")
    if outcome.failed:
        err.print(f"tracebacks: {job.out / 'failures.json'}; the same command tries again")
        raise typer.Exit(1)


@app.command()
def plan(source: Source, only: Only = "", store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """Show what a run would do, and what of it is done."""
    from benchmark import session

    try:
        show_plan(session.prepare(chosen(source, only), source=source, out=None, store=store, claim=False), as_json)
    except InputError as error:
        refuse(error)


def show_plan(job: Any, as_json: bool) -> None:
    """Print counts of tasks and passes."""
    facts = job.facts()
    if as_json:
        out.print_json(json.dumps(facts))
        return
    out.print(f"{facts['cells']} cells, {facts['tasks']} tasks, {facts['left']} to run")
    for kind, count in facts["by_kind"].items():
        out.print(f"  {kind:9} {count['tasks']:5} tasks, {count['left']:5} to run")
    out.print(
        f"about {facts['passes']:,} U-Net passes in all; separate scripts would spend {facts['requested_passes']:,}"
    )
    for skip in facts["skipped"]:
        out.print(f"  skipped {skip['attack']} on {skip['defense']}, {skip['concept']}: {skip['reason']}")


@app.command()
def status(source: Source, only: Only = "", store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """Show how far a run is: done, to run, and the tasks that are next."""
    from benchmark import session

    try:
        job = session.prepare(chosen(source, only), source=source, out=None, store=store, claim=False)
    except InputError as error:
        refuse(error)
    facts = job.facts()
    done = facts["tasks"] - facts["left"]
    if as_json:
        out.print_json(json.dumps(facts | {"done": done, "next": [task.label for task in job.left[:5]]}))
        return
    out.print(f"{done} of {facts['tasks']} tasks done")
    for task in job.left[:5]:
        out.print(f"  next: {escape(task.kind)} {escape(task.label)}")


@app.command()
def board(
    sources: Annotated[list[str], typer.Argument(help="A preset or YAML file; several give one board over all.")],
    out_folder: Out = None,
    only: Only = "",
    store: StoreAt = Path("store"),
    figures: Annotated[bool, typer.Option("--figures", help="Also write PDF and PNG for a paper.")] = False,
) -> None:
    """Write and show the leaderboard from what is in the store; computes no images and no scores."""
    from benchmark import session

    try:
        many = len(sources) > 1
        jobs = [
            session.prepare(chosen(s, only), source=s, out=out_folder, store=store, claim=not many) for s in sources
        ]
        folder = (out_folder or Path("runs") / "merged") if many else jobs[0].out
        published = session.merge(jobs, folder) if many else jobs[0].publish()
    except InputError as error:
        refuse(error)
    show_board(published, folder)
    if figures:
        from benchmark.report import figures as drawn

        for file in drawn.save(published, folder / "figures"):
            out.print(str(file))


@app.command()
def export(
    source: Source,
    cell: Annotated[str, typer.Argument(help="concept/defense, or concept/defense/attack@budget#seed.")],
    to: Annotated[Path, typer.Option("--to", help="An empty folder for the model.")],
    store: StoreAt = Path("store"),
) -> None:
    """Write a cell's model as a diffusers folder that `from_pretrained` loads."""
    from benchmark import session
    from benchmark.export import export as write
    from benchmark.export import find_cell
    from benchmark.stages import Bench

    try:
        job = session.prepare(chosen(source, ""), source=source, out=None, store=store, claim=False)
        found = find_cell(job.plan, cell)
        write(job.plan, Bench(job.folder, job.store), found, to)
    except InputError as error:
        refuse(error)
    out.print(f"{found.name} -> {to}")


def show_board(published: Any, folder: Path) -> None:
    """Print the leaderboard and where the tables are."""
    from benchmark.watch import leaderboard_table

    out.print(leaderboard_table(published.leaderboard))
    names = ("leaderboard.csv", "matrix.csv", "curves.csv", "cells.csv", "comparisons.csv", "claims.csv")
    for file in (folder / name for name in (*names, "report/index.html")):
        if file.is_file():
            out.print(str(file))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="defenses, attacks, metrics, concepts, models or presets")],
    as_json: Json = False,
) -> None:
    """List what titer knows."""
    from benchmark import catalog

    try:
        found = catalog.listing(what)
    except InputError as error:
        refuse(error)
    if as_json:
        out.print_json(json.dumps(found))
        return
    for row in found:
        out.print(f"{row['name']:16} {escape(row['summary'])}")


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Show a plug-in, a concept or a preset: its documentation, its fields and defaults, its fidelity."""
    from benchmark import catalog

    try:
        facts = catalog.details(name)
    except InputError as error:
        refuse(error)
    if as_json:
        out.print_json(json.dumps(facts))
        return
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=1)
        out.print(f"[bold]{key}[/]\n{escape(text)}")


@app.command()
def doctor(
    as_json: Json = False,
    mini: Annotated[bool, typer.Option("--mini", help="Measure the embedded model against its bar; a minute.")] = False,
    grid: Annotated[Path | None, typer.Option(help="With --mini: keep a picture of the images.")] = None,
) -> None:
    """Check this installation: versions, device, every plug-in, and with --mini the embedded model's bar."""
    from benchmark import catalog

    checks = catalog.mini_checks(grid) if mini else catalog.checks()
    if as_json:
        out.print_json(json.dumps(checks))
    else:
        for check in checks:
            mark = "[green]ok[/] " if check["ok"] else "[red]bad[/]"
            out.print(f"{mark} {check['name']:24} {escape(str(check['found']))}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """The entry point: our own errors become one line."""
    try:
        app()
    except InputError as error:
        err.print(f"{type(error).__name__}: {' '.join(str(error).split())}", markup=False)
        sys.exit(2)
    except TiterError as error:
        err.print(f"{type(error).__name__}: {error}", markup=False)
        sys.exit(1)
