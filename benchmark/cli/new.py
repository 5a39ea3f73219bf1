"""The command that starts a plug-in."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.common import app, out, refusing


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="defense, attack or metric")],
    name: Annotated[str, typer.Argument(help="A lower-case Python name.")],
    to: Annotated[Path | None, typer.Option("--to", help="A new folder; by default NAME.")] = None,
    style: Annotated[
        str, typer.Option("--kind", help="Of an attack: weight (the default), prompt, reword or sampling.")
    ] = "",
) -> None:
    """Write an installable plug-in: a method that works, its test by the conformance suite and its entry point."""
    from benchmark.kit import scaffold

    with refusing():
        files = scaffold.write(kind, name, to or Path(name), style)
    for file in files:
        out.print(str(file))
    at = files[0].parent
    out.print(f"next: pip install -e '{at}[test]' && python -m pytest {at}", markup=False)
