"""Commands that publish: board and export."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.cli.common import Json, Only, Out, Source, StoreAt, app, chosen, out, refusing


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
    as_json: Json = False,
) -> None:
    """Write and show the leaderboard from what is in the store; computes no images and no scores."""
    from benchmark import session

    with refusing():
        many = len(sources) > 1
        jobs = [
            session.prepare(chosen(s, only), source=s, out=out_folder, store=store, claim=not many, weights="cached")
            for s in sources
        ]
        folder = (out_folder or Path("runs") / "merged") if many else jobs[0].out
        published = session.merge(jobs, folder) if many else jobs[0].publish()
        files = drawn_figures(published, folder, jobs) if figures else []
        if as_json:
            rows = json.loads(published.leaderboard.to_json(orient="records", double_precision=15))
            out.print_json(json.dumps({"folder": str(folder), "leaderboard": rows}))
            return
        show_board(published, folder)
        if many:
            out.print("no report: images and curves of a run are in its own, runs/NAME/report/index.html")
        if reported:
            show_reported(published, folder)
        for file in files:
            out.print(str(file))


def drawn_figures(published: Any, folder: Path, jobs: Sequence[Any]) -> list[Path]:
    """The figures for a paper, with the units of the attacks' budgets."""
    from benchmark.results.report import figures, series

    units = {attack: unit for job in jobs for attack, unit in series.units(job.plan).items()}
    return figures.save(published, folder / "figures", units)


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
    from benchmark.runner.export import export as write
    from benchmark.runner.export import find_cell
    from benchmark.runner.stages import Bench

    with refusing():
        job = session.prepare(chosen(source, ""), source=source, out=None, store=store, claim=False, weights="cached")
        found = find_cell(job.plan, cell)
        assert job.folder is not None
        write(job.plan, Bench(job.folder, job.store), found, to, attack_only=attack_only)
    out.print(f"{found.name} -> {to}")


def show_board(published: Any, folder: Path) -> None:
    """Print the leaderboard, what weakens its numbers, and where the tables are."""
    from benchmark.cli.tables import leaderboard_table, notes

    out.print(leaderboard_table(published.leaderboard))
    for line in notes(published.leaderboard, cells_of(published, folder)):
        out.print(line, markup=False)
    names = ("leaderboard.csv", "matrix.csv", "curves.csv", "cells.csv", "comparisons.csv", "claims.csv")
    for file in (folder / name for name in (*names, "report/index.html")):
        if file.is_file():
            out.print(str(file))


def cells_of(published: Any, folder: Path) -> Any:
    """The cells of a board that was just made, or of the tables that were there already; None without any."""
    import pandas as pd

    board = getattr(published, "board", published)
    if board is not None and hasattr(board, "cells"):
        return board.cells
    file = folder / "cells.parquet"
    return pd.read_parquet(file) if file.is_file() else None


def show_reported(published: Any, folder: Path) -> None:
    """Write and print what others report beside what was measured."""
    from benchmark.cli.tables import reported_table, sources
    from leaderboards import reported as others
    from leaderboards.files import write_table

    found = others.beside(published.cells, others.read())
    write_table(found, folder / "reported.csv")
    out.print(reported_table(found))
    for line in sources(found):
        out.print(line, markup=False)
    out.print(str(folder / "reported.csv"))
