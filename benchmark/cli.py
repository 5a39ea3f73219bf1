"""The command `titer`. The only place that prints.

Exit codes: 0 done, 1 some cells failed, 2 the input is wrong, 130 stopped by Ctrl-C.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from benchmark import config as configs
from benchmark.errors import ConfigError, FolderError, InputError, TiterError
from benchmark.store import Store

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n")[0])
store_app = typer.Typer(no_args_is_help=True, help="Look after the folder of all results.")
app.add_typer(store_app, name="store")
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Source = Annotated[str, typer.Argument(help="A preset (see `titer list presets`) or a YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run's tables; default runs/<name>.")]
StoreAt = Annotated[Path, typer.Option("--store", help="Folder of all results, shared by runs.")]
Only = Annotated[str, typer.Option(help="Keep some labels: defense=esd,attack=lora,concept=cat.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Workers on Ray; one a core, or two a GPU.")]


class Executor(StrEnum):
    """Who runs the tasks: this process, or workers on Ray."""

    local = "local"
    ray = "ray"


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
    time_limit: Annotated[float | None, typer.Option(min=0.001, help="Seconds that one task may take.")] = None,
    executor: Annotated[Executor, typer.Option(help="This process, or many GPUs and machines.")] = Executor.local,
    workers: Workers = None,
    track: Annotated[str, typer.Option(help="Also tell wandb, mlflow or trackio.")] = "",
    save_flagged: Annotated[
        bool, typer.Option("--save-flagged", help="NSFW suites: keep the images; reports blur them.")
    ] = False,
    keep_attacks: Annotated[
        bool, typer.Option("--keep-attacks", help="NSFW suites: keep attacked weights and found prompts.")
    ] = False,
) -> None:
    """Run a matrix: compute what is missing, then write and show the leaderboard. The same command resumes."""
    from benchmark import published

    if not (dry_run or track) and (finished := published.again(source, only, out_folder, store)):
        show_board(finished, finished.folder)
        out.print(f"ran 0, found {finished.tasks}, failed 0, skipped 0")
        return
    from benchmark import session
    from benchmark import track as tracking

    job = None
    try:
        tracker = tracking.tracker_of(track) if track else None
        job = session.prepare(
            chosen(source, only),
            source=source,
            out=out_folder,
            store=store,
            claim=not dry_run,
            weights="optional" if dry_run else "download",
        )
        job.only = only
        if dry_run:
            show_plan(job, as_json=False)
            return
        from benchmark.executors.limits import each_task
        from benchmark.watch import Bars

        with Bars(err, job.left) as bars, each_task(time_limit), tracking.told(tracker, job, bars) as events:
            outcome = job.run(
                events,
                device=device,
                batch=batch,
                executor=executor.value,
                workers=workers,
                save_flagged=save_flagged,
                keep_attacks=keep_attacks,
            )
    except InputError as error:
        refuse(error)
    except OSError as error:
        refuse(FolderError(f"expected to read and write the run's folders, got {error}: make room or give rights."))
    except KeyboardInterrupt:
        done = f"{len(job.plan.tasks) - len(job.left)} of {len(job.plan.tasks)} tasks are done; " if job else ""
        err.print(f"stopped: {done}the same command goes on from here")
        raise typer.Exit(130) from None
    show_board(job, job.out)
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
        job = session.prepare(
            chosen(source, only), source=source, out=None, store=store, claim=False, weights="optional"
        )
        show_plan(job, as_json)
    except InputError as error:
        refuse(error)


def show_plan(job: Any, as_json: bool) -> None:
    """Print counts of tasks and passes."""
    facts = job.facts()
    if as_json:
        out.print_json(json.dumps(facts))
        return
    if job.folder is None:
        out.print(f"{facts['model']}: no weights here; a run gets them, and what is done is known then", markup=False)
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
        job = session.prepare(
            chosen(source, only), source=source, out=None, store=store, claim=False, weights="optional"
        )
    except InputError as error:
        refuse(error)
    left = job.left
    facts = job.facts(left)
    done = facts["tasks"] - facts["left"]
    if as_json:
        out.print_json(json.dumps(facts | {"done": done, "next": [task.label for task in left[:5]]}))
        return
    out.print(f"{done} of {facts['tasks']} tasks done")
    for task in left[:5]:
        out.print(f"  next: {escape(task.kind)} {escape(task.label)}")


@app.command()
def score(
    source: Source,
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric's name, or '{use: NAME, field: value}'; repeat for more.")
    ] = None,
    out_folder: Out = None,
    only: Only = "",
    store: StoreAt = Path("store"),
    batch: Annotated[int, typer.Option(min=1, help="Images at once; changes no number.")] = 64,
) -> None:
    """Score the stored images again, with another threshold or metric: nothing is trained and no image is drawn."""
    from benchmark import rescore, session
    from benchmark.watch import Bars

    try:
        Store(store).existing()
        config = rescore.with_metrics(chosen(source, only), metric or [])
        job = session.prepare(config, source=source, out=out_folder, store=store, weights="cached")
        with Bars(err, [task for task in job.left if task.kind in ("embed", "score")]) as bars:
            done = job.score(bars, batch=batch)
    except InputError as error:
        refuse(error)
    except OSError as error:
        refuse(FolderError(f"expected to read and write the run's folders, got {error}: make room or give rights."))
    except KeyboardInterrupt:
        err.print("stopped: the same command goes on from here")
        raise typer.Exit(130) from None
    show_board(job, job.out)
    scored = [key for key in done.outcome.ran if job.plan.tasks[key].kind == "score"]
    failed = done.outcome.failed
    counts = f"scored {len(scored)}, derived {len(done.derived)} from raw scores"
    out.print(f"{counts}, failed {len(failed)}, without images {len(done.absent)}")
    if cells := done.cells(job.plan):
        more = f" and {len(cells) - 5} more" if len(cells) > 5 else ""
        err.print(f"{len(cells)} cells lack images, which titer run draws: {escape(', '.join(cells[:5]))}{more}")
    for key in failed:
        err.print(f"[red]failed[/] {escape(job.plan.tasks[key].label)}: see {job.out / 'failures.json'}")
    if done.absent or failed:
        raise typer.Exit(1)


@app.command()
def board(
    sources: Annotated[list[str], typer.Argument(help="A preset or YAML file; several give one board over all.")],
    out_folder: Out = None,
    only: Only = "",
    store: StoreAt = Path("store"),
    figures: Annotated[bool, typer.Option("--figures", help="Also write PDF and PNG for a paper.")] = False,
    reported: Annotated[
        bool, typer.Option("--reported", help="Also show what papers and public boards report, in reported.csv.")
    ] = False,
) -> None:
    """Write and show the leaderboard from what is in the store; computes no images and no scores."""
    from benchmark import session

    try:
        many = len(sources) > 1
        jobs = [
            session.prepare(chosen(s, only), source=s, out=out_folder, store=store, claim=not many, weights="cached")
            for s in sources
        ]
        folder = (out_folder or Path("runs") / "merged") if many else jobs[0].out
        published = session.merge(jobs, folder) if many else jobs[0].publish()
    except InputError as error:
        refuse(error)
    show_board(published, folder)
    if reported:
        show_reported(published, folder)
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
    attack_only: Annotated[bool, typer.Option("--attack-only", help="LoRA or embedding files alone.")] = False,
) -> None:
    """Write a cell's model as a diffusers folder that `from_pretrained` loads, or what its attack learned."""
    from benchmark import session
    from benchmark.export import export as write
    from benchmark.export import find_cell
    from benchmark.stages import Bench

    try:
        job = session.prepare(chosen(source, ""), source=source, out=None, store=store, claim=False, weights="cached")
        found = find_cell(job.plan, cell)
        assert job.folder is not None
        write(job.plan, Bench(job.folder, job.store), found, to, attack_only=attack_only)
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


def show_reported(published: Any, folder: Path) -> None:
    """Write and print what others report beside what was measured."""
    from benchmark.watch import reported_table
    from leaderboards import reported as others
    from leaderboards.files import write_table

    found = others.beside(published.cells, others.read())
    write_table(found, folder / "reported.csv")
    out.print(reported_table(found))
    out.print(str(folder / "reported.csv"))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="defenses, attacks, metrics, concepts, sets, models or presets")],
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
    model: Annotated[str, typer.Option(help="Check this model instead: a preset, a folder or a hub id.")] = "",
    preset: Annotated[str, typer.Option(help="With --model: a config whose hours to estimate.")] = "",
    judge: Annotated[str, typer.Option(help="Calibrate this judge instead, such as torchvision:resnet50.")] = "",
    images: Annotated[Path | None, typer.Option(help="With --judge: a folder with a subfolder for each label.")] = None,
    concept: Annotated[str, typer.Option(help="With --judge: the concept whose labels it chooses from.")] = "",
    device: Device = "auto",
) -> None:
    """Check this installation: versions, device, every plug-in; or with --mini the embedded model's bar.

    With --model: access, weights, disk, memory, speed, and with --preset the hours that it would take here.
    With --judge: the calibration card of a judge, as JSON, from pictures whose labels are known.
    """
    from benchmark import catalog

    try:
        if judge:
            from benchmark.calibration import calibrate

            if images is None:
                raise ConfigError("expected --images FOLDER with --judge, got none: a subfolder for each label.")
            out.print_json(json.dumps(calibrate(judge, images, concept, lambda *, step, total, loss: None)))
            return
        if model:
            from benchmark.fitness import checks as of_model

            checks = of_model(model, chosen(preset, "") if preset else None, device)
        else:
            checks = catalog.mini_checks(grid) if mini else catalog.checks()
    except InputError as error:
        refuse(error)
    if as_json:
        out.print_json(json.dumps(checks))
    else:
        for check in checks:
            mark = "[green]ok[/] " if check["ok"] else "[red]bad[/]"
            out.print(f"{mark} {check['name']:24} {escape(str(check['found']))}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def existing(store: Path) -> Store:
    """The store, or one line and 2."""
    try:
        return Store(store).existing()
    except InputError as error:
        refuse(error)


@store_app.command("ls")
def store_ls(store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """List every result: its size, its key, what it is."""
    rows = list(existing(store).ls())
    if as_json:
        out.print_json(json.dumps(rows))
        return
    for row in rows:
        mark = "" if row["ok"] else "  [red]damaged: see titer store verify[/]"
        out.print(f"{row['bytes']:>12,}  {escape(row['key'])}  {escape(row['label'])}{mark}")
    out.print(f"{len(rows)} results, {sum(row['bytes'] for row in rows):,} bytes")


@store_app.command("verify")
def store_verify(store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """Read every file and compare it with what was recorded; exit code 1 if one differs."""
    found = list(existing(store).verify())
    if as_json:
        out.print_json(json.dumps([vars(problem) for problem in found]))
    else:
        for problem in found:
            out.print(f"{problem.kind:10} {escape(problem.path)}: {escape(problem.text)}")
        out.print(f"{len(list(Store(store).keys()))} results, {len(found)} problems")
    if any(problem.kind not in ("unfinished", "unknown") for problem in found):
        err.print("the next run computes missing, truncated and altered results again; `titer store gc` removes them")
        raise typer.Exit(1)


@store_app.command("gc")
def store_gc(
    store: StoreAt = Path("store"),
    keep: Annotated[list[str] | None, typer.Option(help="Remove all that this config does not need; repeat.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed runs left and damaged results; with --keep also results that no given config needs."""
    from benchmark import session

    try:
        jobs = [
            session.prepare(configs.load(source), source=source, out=None, store=store, claim=False, weights="cached")
            for source in keep or []
        ]
        needed = {key for job in jobs for key in job.plan.tasks}
        gone = Store(store).gc(needed.__contains__ if keep else None, dry=dry_run)
    except InputError as error:
        refuse(error)
    if as_json:
        out.print_json(json.dumps(gone))
        return
    for path in gone:
        out.print(f"{'would remove' if dry_run else 'removed'} {escape(path)}")
    out.print(f"{len(gone)} removed" if not dry_run else f"{len(gone)} to remove")


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="defense, attack or metric")],
    name: Annotated[str, typer.Argument(help="A lower-case Python name.")],
    to: Annotated[Path | None, typer.Option("--to", help="A new folder; by default NAME.")] = None,
) -> None:
    """Write an installable plug-in: a method that works, its test by the conformance suite and its entry point."""
    from benchmark import scaffold

    try:
        files = scaffold.write(kind, name, to or Path(name))
    except InputError as error:
        refuse(error)
    for file in files:
        out.print(str(file))
    out.print(f"next: pip install -e {files[0].parent} && python -m pytest {files[0].parent}", markup=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors: names and fields of every plug-in installed here."""
    out.print_json(json.dumps(configs.schema()))


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
