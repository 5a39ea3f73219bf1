"""Commands that fill a store: run and score."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from benchmark.cli.board import show_board
from benchmark.cli.common import Device, Only, Out, Source, StoreAt, Workers, app, chosen, err, out, refusing
from benchmark.cli.look import show_plan
from benchmark.model.devices import check_name, present
from benchmark.runner.executors import Executor
from benchmark.store import Store

silent = Console(stderr=True, quiet=True)
NOTHING = dict.fromkeys(("ran", "found", "failed", "skipped"), 0)


@contextmanager
def working(done: Callable[[], str]) -> Iterator[None]:
    """Wrong input and folders that fail end in one line and 2, Ctrl-C in 130 and what `done` says.

    A second Ctrl-C does not wait for whoever is at work. What a plug-in's file or class ends the process with is 1.
    """
    from benchmark.runner.isolation import interrupts

    try:
        with refusing(), interrupts.insisting(lambda: err.print("stopped: the same command goes on from here")):
            try:
                yield
            except SystemExit as error:
                err.print(f"expected plug-ins that leave ending to titer, got SystemExit({error.code})", markup=False)
                raise typer.Exit(1) from error
    except KeyboardInterrupt:
        err.print(f"stopped: {done()}the same command goes on from here")
        raise typer.Exit(130) from None


def give_up(text: str) -> None:
    """End the process: a task cannot be stopped."""
    err.print(f"{text}\nIt cannot be stopped, so the run ends; `titer board` shows what is done.", markup=False)
    os._exit(1)


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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was done and the leaderboard as JSON; progress stays on stderr.")
    ] = False,
    save_flagged: Annotated[
        bool, typer.Option("--save-flagged", help="NSFW suites: keep the images; reports blur them.")
    ] = False,
    keep_attacks: Annotated[
        bool, typer.Option("--keep-attacks", help="NSFW suites: keep attacked weights and found prompts.")
    ] = False,
    trust_version: Annotated[
        bool, typer.Option("--trust-version", help="Take results for those of the code that is there now.")
    ] = False,
) -> None:
    """Run a matrix: compute what is missing, then write and show the leaderboard. The same command resumes."""
    from benchmark.results import published

    with refusing():
        check_name(device, on_ray=executor is Executor.ray)
    if not (dry_run or track or trust_version) and (finished := published.again(source, only, out_folder, store)):
        conclude(finished, finished.folder, {**NOTHING, "found": finished.tasks}, {}, quiet=quiet, as_json=as_json)
        return
    from benchmark import session
    from benchmark.runner import trackers as tracking

    job = None

    def done() -> str:
        return f"{len(job.plan.tasks) - len(job.left)} of {len(job.plan.tasks)} tasks are done; " if job else ""

    with working(done):
        if executor is Executor.local:
            present(device)  # before a folder is made
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
            show_plan(job, as_json)
            return
        if trust_version:
            job.trust()
        warn(job)
        from benchmark.runner.limits import each_task
        from benchmark.runner.progress import Bars

        with (
            Bars(silent if quiet else err, job.left) as bars,
            each_task(time_limit, give_up),
            tracking.told(tracker, job, bars) as events,
        ):
            outcome = job.run(
                events,
                device=device,
                batch=batch,
                executor=executor,
                workers=workers,
                save_flagged=save_flagged,
                keep_attacks=keep_attacks,
            )
    counts = {what: len(getattr(outcome, what)) for what in NOTHING}
    reasons = {job.plan.tasks[key].label: trace.strip().rpartition("\n")[2] for key, trace in outcome.failed.items()}
    conclude(job, job.out, counts, reasons, quiet=quiet, as_json=as_json)


def warn(job: Any) -> None:
    """Say what the tables cannot tell, and which results are of other code than is there now, a line for each."""
    for said in (*job.plan.config.given_up, *(one.told for one in job.changed())):
        err.print(f"[yellow]warning[/]: {escape(said)}")


def conclude(
    found: Any, folder: Path, counts: dict[str, int], reasons: dict[str, str], *, quiet: bool, as_json: bool
) -> None:
    """Say what a run did, and leave with 1 if something failed; `reasons` are those of the failed tasks."""
    if as_json:
        rows = json.loads(found.leaderboard.to_json(orient="records", double_precision=15))
        out.print_json(json.dumps({"folder": str(folder), **counts, "failures": reasons, "leaderboard": rows}))
    elif not quiet:
        show_board(found, folder)
        out.print(", ".join(f"{what} {count}" for what, count in counts.items()))
    for label, reason in reasons.items():
        err.print(f"[red]failed[/] {escape(label)}: {escape(reason)}")
    if reasons:
        err.print(f"tracebacks: {folder / 'failures.json'}; the same command tries again")
        raise typer.Exit(1)


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
    from benchmark import session
    from benchmark.runner import rescore
    from benchmark.runner.progress import Bars

    with working(str):
        Store(store).existing()
        config = rescore.with_metrics(chosen(source, only), metric or [])
        job = session.prepare(config, source=source, out=out_folder, store=store, weights="cached")
        warn(job)
        with Bars(err, [task for task in job.left if task.kind in ("embed", "score")]) as bars:
            done = job.score(bars, batch=batch)
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
