"""Commands on the folder of all results."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from benchmark.cli.common import Json, StoreAt, app, err, refusing, tell
from benchmark.config import config as configs
from benchmark.store import Store, maintenance

store_app = typer.Typer(no_args_is_help=True, help="Look after the folder of all results.")
app.add_typer(store_app, name="store")


@store_app.command("ls")
def store_ls(store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """List every result: its size, its key, what it is."""
    with refusing():
        rows = list(maintenance.ls(Store(store).existing()))
    marks = {True: "", False: "  [red]damaged: see titer store verify[/]"}
    lines = [f"{row['bytes']:>12,}  {escape(row['key'])}  {escape(row['label'])}{marks[row['ok']]}" for row in rows]
    total = f"{len(rows)} results, {sum(row['bytes'] for row in rows):,} bytes"
    tell(rows, [*lines, total], as_json=as_json)


@store_app.command("verify")
def store_verify(
    store: StoreAt = Path("store"),
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is spoilt: the next run computes it.")] = False,
    as_json: Json = False,
) -> None:
    """Read every file and compare it with what was recorded; exit code 1 if one differs and is not repaired."""
    with refusing():
        at, removed = Store(store).existing(), maintenance.Removed()
        if repair:
            found, removed = maintenance.repair(at)
        else:
            found = list(maintenance.verify(at))
        count = len(list(at.results()))
    lines = [f"{problem.kind:10} {escape(problem.path)}: {escape(problem.text)}" for problem in found]
    lines += [f"removed    {escape(key)}" for key in removed.gone]
    tell([vars(problem) for problem in found], [*lines, f"{count} results, {len(found)} problems"], as_json=as_json)
    refused(removed)
    left = [problem for problem in found if problem.kind not in ("unfinished", "unknown")]
    spoilt = [problem for problem in left if problem.kind in maintenance.SPOILT]
    if spoilt and not repair:
        err.print("`titer store verify --repair` removes what is spoilt; the next run computes it again")
    if any(problem.key not in removed.gone for problem in left):
        raise typer.Exit(1)


@store_app.command("gc")
def store_gc(
    store: StoreAt = Path("store"),
    keep: Annotated[list[str] | None, typer.Option(help="Remove all that this config does not need; repeat.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed runs left, scored attacks of NSFW suites among it, and damaged results.

    With --keep also results that no given config needs.
    """
    from benchmark import session

    with refusing():
        jobs = [
            session.prepare(configs.load(source), source=source, out=None, store=store, claim=False, weights="cached")
            for source in keep or []
        ]
        needed = {key for job in jobs for key in job.plan.tasks}
        removed = maintenance.gc(Store(store), needed.__contains__ if keep else None, dry=dry_run)
    said, total = ("would remove", "to remove") if dry_run else ("removed", "removed")
    lines = [*(f"{said} {escape(path)}" for path in removed.gone), f"{len(removed.gone)} {total}"]
    tell(removed.gone, lines, as_json=as_json)
    refused(removed)
    if removed.stayed:
        raise typer.Exit(1)


def refused(removed: maintenance.Removed) -> None:
    """Say what could not be removed."""
    for path, reason in removed.stayed.items():
        err.print(f"[red]stays[/] {escape(path)}: {escape(reason)}")
