"""Commands on the folder of all results."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from benchmark import config as configs
from benchmark.cli.common import Json, StoreAt, app, err, out, refuse
from benchmark.errors import InputError
from benchmark.store import Store

store_app = typer.Typer(no_args_is_help=True, help="Look after the folder of all results.")
app.add_typer(store_app, name="store")


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
